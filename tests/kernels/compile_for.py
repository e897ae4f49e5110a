"""Compiles every kernel in SIGNATURES for one GPU that need not be here; prints a JSON line for each.

python compile_for.py BACKEND ARCHITECTURE WARP
"""

import json
import pkgutil
import sys
from importlib import import_module

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import luthier.kernels.triton as shelf

MODULES = [import_module(f"{shelf.__name__}.{found.name}") for found in pkgutil.iter_modules(shelf.__path__)]


def compiled(kernel, types, launch, target) -> int:
    """Compile as a launch with well-aligned arguments would, which asks for the most; return bytes of shared memory."""
    options = {name: value for name, value in launch.items() if name.startswith("num_")}
    constants = {name: value for name, value in launch.items() if name not in options}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name] == "i32" or signature[name][0] == "*"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    found = triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)
    return found.metadata.shared


def main() -> None:
    backend, architecture, warp = sys.argv[1:]
    target = GPUTarget(backend, int(architecture) if architecture.isdigit() else architecture, int(warp))
    for module in MODULES:
        for kernel, types, launch in module.SIGNATURES:
            line = {"kernel": kernel.__name__, "types": types, "launch": launch}
            try:
                line["shared"] = compiled(kernel, types, launch, target)
            except Exception as error:  # noqa: BLE001 - every failure of a compiler is a finding
                line["error"] = repr(error)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
