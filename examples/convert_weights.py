"""Convert an AlexNet's weights from any known format into another.

python examples/convert_weights.py alexnet.pth alexnet.onnx   for ONNX Runtime and others
python examples/convert_weights.py RUN flowers.safetensors    torchvision's names, with classes

The same as the command `tinyalex convert`; its code is in tinyalex/cli/convert.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.convert import main

    sys.exit(main())
