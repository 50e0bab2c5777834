"""Package layout; everything else stands in pyproject.toml.

The CUDA sources live in `kernels/`, beside the package, and travel inside it as `tinyalex/kernels`.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class Build(build_py):
    """Build of the package and of `kernels/`.

    package_dir has but the folder of all packages, so that `pip install -e` adds that to the
    path. With one for `kernels/`, or none, it would import the package by a finder, which comes
    after the path's folders: beside a clone called tinyalex, the clone's own folder would be
    imported.
    """

    def get_package_dir(self, package: str) -> str:
        """Return the folder of a package."""
        return "kernels" if package == "tinyalex.kernels" else super().get_package_dir(package)


setup(
    cmdclass={"build_py": Build},
    packages=[*find_packages(include=["tinyalex", "tinyalex.*"]), "tinyalex.kernels"],
    package_dir={"": "."},
    package_data={
        "tinyalex": ["py.typed"],
        "tinyalex.data": ["imagenet.txt"],
        "tinyalex.pictures": ["report.html"],
        "tinyalex.kernels": ["*"],
    },
)
