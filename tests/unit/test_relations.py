"""Relations: two fusions, three answers; what is stored about real orders follows from stored pairs."""

import numpy as np
import pandas as pd
import pytest

from prodsim.core import ProdsimError
from prodsim.similarity import relations
from prodsim.similarity.relations import (
    foretold,
    foretold_metrics,
    judged_dimensions,
    judged_metrics,
    learn_relations,
    read_relations,
    read_retail,
    relation_differences,
    relation_sheet,
    stored_relations,
)

GROUPS = {"title words": "lexical", "same basket": "context"}


def measured(n=300, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.choice(["substitute", "complement", "neither"], n)
    words = np.where(kind == "substitute", 0.7, 0.2) + rng.normal(0, 0.1, n)
    basket = np.where(kind == "complement", 0.6, 0.1) + rng.normal(0, 0.1, n)
    return pd.DataFrame({"title words": words.clip(0, 1), "same basket": basket.clip(0, 1)}), kind


def test_substitutes_and_complements_are_told_apart():
    (x, kind), (held, truth) = measured(), measured(seed=1)
    judged = learn_relations(x, kind, held, truth, GROUPS).judge(measured(seed=2)[0])
    assert (judged["relation"].to_numpy() == measured(seed=2)[1]).mean() > 0.9
    assert judged[["substitute", "complement"]].max(axis=None) <= 1
    unknown = pd.DataFrame({"title words": [np.nan], "same basket": [0.9]})
    assert learn_relations(x, kind, held, truth, GROUPS).judge(unknown)["complement"][0] > 0.5


def test_another_relation_is_refused():
    x, kind = measured(60)
    with pytest.raises(ProdsimError, match="relation 'rival': it is one of substitute, complement, neither"):
        learn_relations(x, np.where(kind == "neither", "rival", kind), x, kind, GROUPS)


@pytest.fixture(scope="module")
def year():
    "Items 2k and 2k + 1 go into one basket; items k and k + 2 of a group of four are of one kind."
    rng = np.random.default_rng(0)
    rows = []
    for day in range(300):
        for user in range(6):
            one = int(rng.integers(30))
            for item in {one, one ^ 1, *([int(rng.integers(60))] if rng.random() < 0.5 else [])}:
                rows.append((f"u{user}-{day % 40}", f"i{item:02d}", "purchase", day))
    events = pd.DataFrame(rows, columns=["user", "item", "kind", "day"])
    events = events.assign(time=pd.Timestamp("2024-01-01") + pd.to_timedelta(events.pop("day"), unit="D"))
    items = pd.DataFrame({"id": sorted(events["item"].unique())})
    number = items["id"].str[1:].astype(int)
    return events, items.assign(title=[f"kind{n // 4 * 2 + n % 2} shade{n}" for n in number], price=1.0)


def test_baskets_that_repeat_are_foretold(year):
    table = foretold(*year, pairs=40, least=5)
    metrics = foretold_metrics(table)
    assert table["together"].sum() >= 5 and metrics["same basket"]["average_precision"] > 0.9
    assert metrics["price"]["average_precision"] < 0.6


def test_judged_relations_are_separated(year, tmp_path):
    sheet = relation_sheet(*year, sizes=(12, 20, 40), least=5)
    assert set(sheet["source"]) == {"basket", "titles", "random"}
    assert not sheet.duplicated(["left_id", "right_id"]).any() and (sheet["left_id"] < sheet["right_id"]).all()
    with pytest.raises(ProdsimError, match="sheet.csv: no sheet of judged pairs"):
        read_relations(tmp_path / "sheet.csv")
    sheet.to_csv(tmp_path / "sheet.csv", index=False)
    with pytest.raises(ProdsimError, match="no column 'relation'"):
        read_relations(tmp_path / "sheet.csv")
    a, b = (sheet[f"{side}_id"].str[1:].astype(int) for side in ("left", "right"))
    relation = np.where(
        a ^ 1 == b, "complement", np.where((a // 4 == b // 4) & (a % 2 == b % 2), "substitute", "neither")
    )
    sheet.assign(relation=np.where(sheet.index == 3, "rival", relation)).to_csv(tmp_path / "sheet.csv", index=False)
    with pytest.raises(ProdsimError, match="sheet.csv, line 5: relation 'rival': it is one of"):
        read_relations(tmp_path / "sheet.csv")
    sheet.assign(relation=relation).to_csv(tmp_path / "sheet.csv", index=False)
    table = judged_dimensions(read_relations(tmp_path / "sheet.csv"), *year, least=5, folds=3)
    metrics = judged_metrics(table)
    assert metrics["pairs"] == table["relation"].value_counts().to_dict()
    assert metrics["same basket"]["substitute over complement"]["roc_auc"] < 0.2
    assert metrics["title words"]["substitute over complement"]["roc_auc"] > 0.8
    assert metrics["fused: complement"]["complement over the rest"]["roc_auc"] > 0.8


def test_retail_reads_what_is_sold(tmp_path):
    raw = pd.DataFrame(
        {
            "StockCode": ["85123A", "POST", "85123A", "71053", "71053"],
            "Description": ["HOLDER", "POSTAGE", "HOLDER", None, "LANTERN"],
            "Quantity": [6.0, 1.0, -1.0, 6.0, 2.0],
            "InvoiceDate": [1.29e9] * 5,
            "UnitPrice": [2.55, 18.0, 2.55, 3.39, 3.39],
            "CustomerID": [17850.0, 17850.0, 17850.0, 17850.0, np.nan],
        }
    )
    raw.to_parquet(tmp_path / "onlineretail.parquet")
    events, items = read_retail(tmp_path)
    assert events["item"].tolist() == ["85123A"] and events["user"].tolist() == ["17850"]
    assert items.to_dict("records") == [{"id": "85123A", "title": "HOLDER", "price": 2.55}]


def test_committed_numbers_follow_from_their_pairs():
    (result,) = stored_relations()
    assert not relation_differences(result)
    changed = {**result, "metrics": {**result["metrics"], "price": {**result["metrics"]["price"], "known": 0.5}}}
    assert len(relation_differences(changed)) == 1
    changed = {**result, "judged": {**result["judged"], "pairs": {}}}
    assert len(relation_differences(changed)) == 1
    with pytest.raises(ProdsimError, match="missing or unreadable; run: prodsim relations"):
        relations.relation_pairs({**result, "pairs_file": "none.csv.gz"})
