"""What requests and replies of the page's interface hold. The page's TypeScript types are made from these."""
