"""Packaging: every fact stands in settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="], inline_comment_prefixes=None)
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
EXTRAS = ("offline", "search", "engine", "ray", "behaviour", "explain", "translate", "retail", "wandb", "dev")
RESULT_FILES = ("*.json", "*.jsonl", "*.toml", "*/*.gz", "*/*.json", "*/*.csv", "*/*.jsonl")
minors = range(int(cfg["min_python"].split(".")[1]), int(cfg["max_python"].split(".")[1]) + 1)

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    packages=find_packages(include=["prodsim", "prodsim.*"]),
    package_data={
        "prodsim": ["registry.csv", "demo.html", *(f"results/{p}" for p in RESULT_FILES)],
        "prodsim.quality": ["*.toml"],
    },
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in EXTRAS},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "prodsim.datasets": cfg["dataset_plugins"].split(),
        "prodsim.models": cfg["model_plugins"].split(),
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: OS Independent",
        *[f"Programming Language :: Python :: 3.{m}" for m in minors],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
