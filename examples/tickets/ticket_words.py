"""Words and sentences of the ticket data: training part first, held-out part second. Nothing stands in both."""

from __future__ import annotations

Pair = tuple[list[str], list[str]]

PRODUCTS: Pair = (
    """espresso machine;desk lamp;rain jacket;bread knife;garden hose;board game;phone case;hiking boots;yoga mat;
    rice cooker;wall clock;travel mug;bike helmet;wool blanket;table fan;chess set;paint roller;camping stove;
    door mat;
    laptop sleeve;picture frame;coffee grinder;water bottle;sewing kit;reading glasses;tool box;folding chair;
    bath towel;
    guitar strap;hand mixer;ice tray;key ring;letter opener;mouse pad;noodle bowl;oven glove;pepper mill;radio alarm;
    salad bowl;tea pot;umbrella stand;vacuum bag;wine rack;beach tent;card holder;dog leash;egg timer;fish tank;
    kettle;blender;rucksack;scarf;tripod;keyboard;lantern;apron;thermos;hammock;printer;whisk;notebook;candle;drill;
    monitor;saucepan;cushion;tablet stand;rain boots;snow shovel;baby blanket;cutting board;gym bag;desk chair;
    hair dryer;milk frother;plant pot;sleeping bag;sun hat;tennis racket;toy train;ukulele;speaker;webcam;helmet lock;
    ski gloves;spice jar;steam iron;tea towel;tent peg;bread bin;wallet;curtain rod;dish rack;flower vase;cable box;
    fruit press;toothbrush;coaster;bookend;swim cap;poster;roaster;cheese grater;wheel pump;power strip;
    cake roller;shoe polish;nail file;pasta maker;soap dish;boot rack;ink roller;soup spoon;book stand;car mirror""",
    """toaster;bookshelf;swim goggles;cheese board;wheelbarrow;puzzle box;power bank;running socks;foam roller;
    soup kettle;
    mirror;lunch box;saddle bag;pillow case;heater;dart board;ladder;head torch;shoe rack;violin bow;garden chair;
    bath mat;bird house;coffee table;photo album;raincoat;salt shaker;sofa cover;sun shade;tool belt;trumpet;
    winter hat;wooden spoon;bicycle pump;cake tin;door bell;fruit bowl;music stand;paint brush;suitcase""",
)
NAMES: Pair = (
    """Anna Kowalska;Tom Becker;Priya Nair;Liam O'Brien;Sofía Márquez;Jürgen Weiß;Mei Chen;David Osei;Clara Dubois;
    Ahmed Hassan;Nina Petrova;Marco Bianchi;Ingrid Sørensen;Yuki Tanaka;Paul Adams;Zoë Peeters;Carlos Vega;Ruth Levy;
    Olga Ivanova;Ben Carter;Fatima Zahra;Erik Lund;Diana Prince;Hugo Blanc;Greta Olsen;Dmitri Orlov;
    Pablo Ruiz;Kim Nguyen;Otto Brandt;Daisy Wood;Igor Novak;Rosa Silva;Theo Papas;Maja Berg;Dario Conti;Elena Popa;
    Victor Hugo;Judith Stein;Omar Said;Gracie Hall;Noel Grant;Dieter Kurz;Verena Holz;Hanna Lind;Emil Frost;
    Lucía Romero;Sam Turner;Aylin Kaya;Jon Harris;Marta Nowak;
    Ravi Iyer""",
    """Emma Fischer;Kofi Mensah;Łukasz Zieliński;Hana Kim;Diego Ortiz;Grace Miller;Björn Dahl;Leila Amiri;Noah Clark;
    Chloé Martin;Tariq Aziz;Vera Horvat""",
)
TOWNS: Pair = (
    """Leeds;Porto;Gdansk;Austin;Lyon;Bergen;Cork;Graz;Osaka;Malmö;Turin;Ghent;Boston;Kiel;Perth;Zürich;Derby;
    Nantes""",
    """Bristol;Sevilla;Utrecht;Denver;Kraków;Bonn;Oslo;Cádiz;Tampa;Basel""",
)
MAIL_WORDS: Pair = (
    """red;blue;silver;happy;quiet;little;rainy;sunny;north;south;river;forest;stone;cloud;winter;summer;apple;lemon;
    tiger;rabbit;falcon;otter;piano;violet;amber;copper;lucky;brave;gentle;swift;maple;cedar;ocean;island;bridge;
    garden;pepper;ginger;cookie;button;rocket;comet;planet;shadow;mellow;golden;purple;tulip;robin;badger""",
    """green;silent;autumn;mountain;orange;panda;guitar;clever;willow;harbor;cherry;meteor;crimson;daisy;beaver""",
)
MAIL_HOSTS: Pair = (["mailbox.example", "post.example", "web.example"], ["inbox.example", "letters.example"])

INTENTS: dict[str, Pair] = {
    "refund": (
        [
            "I would like my money back for the {product}.",
            "Please refund me for the {product}, I sent it back last week.",
            "The {product} is not for me, so I want a refund.",
            "You still owe me the refund for the {product} I returned.",
            "Can I get my money back for this {product}?",
            "I returned the {product} and the refund has not reached my account.",
            "Kindly pay back what I spent on the {product}.",
            "I am asking for a full refund of the {product}.",
            "The {product} went back to you, now I am waiting for my money.",
            "How do I get a refund for the {product}?",
        ],
        [
            "Please give me my money back, the {product} did not suit us.",
            "I want a refund for a {product} that I sent back.",
        ],
    ),
    "late_delivery": (
        [
            "My {product} should have arrived days ago and it is still not here.",
            "The {product} has not arrived yet.",
            "Where is my {product}? It is late.",
            "I am still waiting for the {product} to be delivered.",
            "The parcel with the {product} is overdue.",
            "Tracking has not moved for a week and the {product} never came.",
            "You promised the {product} for Monday, nothing was delivered.",
            "The delivery of my {product} is late again.",
            "No sign of the {product} so far, the courier never showed up.",
            "It has been two weeks and my {product} has not been delivered.",
        ],
        [
            "The {product} was due last Friday and has still not arrived.",
            "When will the {product} come? The delivery is late.",
        ],
    ),
    "broken_item": (
        [
            "The {product} arrived broken.",
            "My {product} stopped working after one day.",
            "There is a big crack in the {product}.",
            "The {product} came damaged, a part had snapped off.",
            "I opened the box and the {product} was in pieces.",
            "The {product} is defective, it does not work at all.",
            "After the first use the {product} fell apart.",
            "The {product} does not work any more, it is broken.",
            "One side of the {product} was smashed when I unpacked it.",
            "My new {product} is faulty.",
        ],
        ["The {product} was broken when I unpacked it.", "My {product} is damaged and does not work."],
    ),
    "wrong_item": (
        [
            "I ordered a {product} but you sent me something else.",
            "This is not the {product} I ordered.",
            "You sent the wrong thing, I had asked for a {product}.",
            "Instead of the {product} there was another article in the box.",
            "I received somebody else's parcel, not my {product}.",
            "The box did not contain the {product} but a different item.",
            "The {product} you sent is the wrong colour and the wrong model.",
            "I got the wrong size of the {product}.",
            "My order was a {product}; what came is a different product.",
            "There must be a mix-up, the wrong {product} came.",
        ],
        ["You sent me the wrong item, I ordered a {product}.", "What I received is not the {product} that I ordered."],
    ),
    "cancel_order": (
        [
            "Please cancel my order of the {product}.",
            "I want to cancel the {product} before it ships.",
            "I changed my mind, cancel the {product}.",
            "Do not send the {product}, I would like to cancel.",
            "Could you cancel the {product} for me?",
            "I ordered the {product} by mistake and need to cancel it.",
            "Stop the order for the {product}.",
            "I no longer need the {product}, please cancel it.",
            "Can the order for the {product} still be cancelled?",
            "We would like to cancel the {product}.",
        ],
        ["I have to cancel the order for the {product}.", "Please cancel the {product}, we bought one elsewhere."],
    ),
    "change_address": (
        [
            "I moved, please send the {product} to my new address.",
            "The delivery address for the {product} is wrong, can you change it?",
            "Please change the address for the {product}.",
            "Can the {product} go to my office instead of my home address?",
            "I made a mistake in the street name for the {product}, please correct the address.",
            "We have a new address, so update it for the {product}.",
            "The {product} must go to another address.",
            "Could you update the shipping address of the {product}?",
            "Please deliver the {product} to my neighbour's address instead.",
            "I need to change where the {product} is sent, my address is different now.",
        ],
        [
            "My address has changed, please send the {product} there.",
            "Can you change the shipping address for the {product}?",
        ],
    ),
    "invoice_copy": (
        [
            "I need the invoice for the {product}.",
            "Please send me a copy of the invoice for the {product}.",
            "There was no invoice in the box with the {product}.",
            "My accountant wants an invoice for the {product}.",
            "Could I get the bill for the {product} as a PDF?",
            "I lost the receipt of the {product}, can you send it again?",
            "For my taxes I need the invoice of the {product}.",
            "The invoice for the {product} has the wrong company name, please send a new one.",
            "Where can I download the invoice for the {product}?",
            "Please e-mail the receipt for the {product}.",
            "A copy of the bill for the {product} is all I need.",
            "Please give me a copy of the {product} receipt.",
        ],
        [
            "Can you send the invoice for the {product} once more?",
            "I would like a copy of the receipt for the {product}.",
        ],
    ),
    "account_locked": (
        [
            "I cannot log in to see my {product} order.",
            "My account is locked, I only wanted to order a {product}.",
            "The site says my password is wrong, so I cannot buy the {product}.",
            "I am locked out of my account since I ordered the {product}.",
            "The login fails every time I look for the {product}.",
            "My account was blocked after I paid for the {product}.",
            "I forgot my password and cannot log in to track the {product}.",
            "The password reset mail never comes, I want to check on my {product}.",
            "I can't sign in to my account where the {product} is listed.",
            "Your page locked me out while I was paying for the {product}.",
        ],
        ["I cannot log in to my account to follow the {product}.", "My account is locked and the {product} is in it."],
    ),
}

URGENCY: dict[str, Pair] = {
    "high": (
        [
            "This is urgent.",
            "Help me today, please.",
            "I need help as soon as you can.",
            "Please reply today, it is very urgent.",
            "As soon as possible, please!",
            "I need an answer today!",
            "Please hurry, it is urgent.",
            "I need this solved right now.",
            "It is urgent, I am leaving tomorrow.",
            "Answer as soon as possible, please.",
            "URGENT, please help today.",
        ],
        ["It is really urgent.", "I need help today, as soon as possible."],
    ),
    "low": (
        [
            "There is no hurry.",
            "Please do not rush.",
            "I am in no hurry with this one.",
            "There is no rush with it.",
            "You do not have to hurry.",
            "I can wait, there is no rush.",
            "Some time next month is fine, no hurry.",
            "No rush at all.",
            "Whenever you have time is fine.",
            "It can wait until next week.",
            "Take your time.",
            "This is not urgent, so no hurry.",
            "You need not hurry with it.",
            "No need to hurry here.",
            "I am not in a hurry.",
            "No hurry at all, really.",
            "There is no need to rush.",
        ],
        ["No hurry with this.", "Take your time, there is no rush."],
    ),
    "normal": (
        [
            "An answer this week is fine.",
            "Please reply within a few days.",
            "I expect an answer by the end of the week.",
            "It would be good to hear from you this week.",
            "A reply in two or three days is all right.",
            "Please see to it within the week.",
            "Some time this week, please.",
            "Please write back this week.",
            "Kindly answer within the week.",
            "Please answer in the next few days.",
            "A few days are fine for a reply.",
            "Reply to me this week, please.",
            "An answer in the next few days would suit me.",
            "I hope for an answer in a few days.",
        ],
        ["Please answer this week.", "A reply within a few days would be good."],
    ),
}
GREETINGS: Pair = (
    [
        "Hello,",
        "Hi there,",
        "Good morning,",
        "Dear team,",
        "Hey,",
        "Hi,",
        "Good evening,",
        "To whom it may concern,",
        "",
    ],
    ["Hello everyone,", "Good day,", ""],
)
CHATTER: Pair = (
    [
        "I have been a customer since 2019.",
        "My sister in {town} recommended your shop.",
        "It was meant as a birthday present for the 14th.",
        "I paid 39.90 with my card.",
        "The weather in {town} is awful, by the way 🙂",
        "I already called twice and waited 25 minutes.",
        "We live in {town} on the 3rd floor.",
        "I found you through an advert in {town}.",
        "My kids were so sad 😢",
        "The price was 112 euros with shipping.",
        "I bought it on 3 March.",
        "I hope you are all well.",
        "We had the same thing once before in {town}.",
        "The parcel was left at the bakery in {town}.",
        "My husband ordered it for our kitchen.",
        "I wear size 42, in case that matters.",
        "The shop assistant in {town} could not help me.",
        "I read 12 good reviews before I bought it.",
        "We just came back from a holiday in {town} ☀️",
        "It is for our office on the 2nd floor.",
        "My old one lasted 15 years.",
        "The box was blue, with a red ribbon.",
        "I already wrote to you on 21 May.",
        "Our dog barks at every courier 🐶",
        "This is my first order with you.",
        "I used the voucher for 10 euros.",
        "My postcode is 20144, in {town}.",
        "A neighbour signed for the parcel.",
        "I like your new web page.",
        "I am writing for my grandmother, she is 84.",
        "You will find a photo attached.",
        "We met your team at the fair in {town}.",
        "I paid with a gift card.",
        "The whole family was looking forward to it.",
        "I work from home on Fridays.",
        "It cost 24.99 in the sale.",
        "Someone from {town} told me that you are good.",
        "We have ordered here for 4 years now.",
        "I transferred the money through my bank.",
        "Your colleague was very kind last time.",
        "",
        "",
    ],
    [
        "A friend in {town} told me about you.",
        "I paid 57.50 by bank transfer.",
        "We have shopped here for 6 years.",
        "It was a gift for my brother in {town} 🎁",
        "",
    ],
)
ORDERS: Pair = (
    [
        "My order number is {order}.",
        "Order {order}.",
        "The order is {order}.",
        "It is about order {order}.",
        "On the bill it says {order}.",
        "I am talking about order {order}.",
        "Number: {order}.",
        "(order {order})",
    ],
    ["The number of the order is {order}.", "This concerns order {order}."],
)
CONTACTS: Pair = (
    [
        "Write to {contact}.",
        "You can reach me at {contact}.",
        "My contact is {contact}.",
        "Please answer to {contact}.",
        "I can be reached at {contact}.",
        "Use {contact} to reach me.",
        "Send your answer to {contact}.",
    ],
    ["You can write to {contact}.", "Reach me at {contact}."],
)
CLOSINGS: Pair = (["Thanks, {name}", "{name}", "Best regards, {name}", "Cheers, {name}", "Kind regards, {name}"],
                  ["Many thanks, {name}", "Regards, {name}"])  # fmt: skip
