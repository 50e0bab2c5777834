"""Package layout; everything else stands in pyproject.toml.

The CUDA sources live in `kernels/`, beside the package, and travel inside it as `tinyalex/kernels`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tinyalex", "tinyalex.*"]), "tinyalex.kernels"],
    package_dir={"tinyalex.kernels": "kernels"},
    package_data={
        "tinyalex": ["py.typed"],
        "tinyalex.data": ["imagenet.txt"],
        "tinyalex.pictures": ["report.html"],
        "tinyalex.kernels": ["*"],
    },
)
