"""Values and text: what is damaged is named, what is sound is not."""

import math

import numpy as np
import pandas as pd
import pytest

from prodsim.quality.repair import clean_text
from prodsim.quality.values import (
    check_text,
    check_values,
    column_kinds,
    column_numbers,
    coverage,
    to_date,
    to_number,
    usual_range,
)


def records_of(**columns):
    "A table of records as `record_table` gives it."
    n = len(next(iter(columns.values())))
    table = {"key": range(n), "where": [f"row {i}" for i in range(n)], **columns, "uses": [1] * n}
    return pd.DataFrame({k: pd.Series(list(v), dtype=object) for k, v in table.items()})


def names(findings):
    return {f["name"]: f for f in findings}


def test_numbers_and_dates():
    numbers = to_number(pd.Series(["$1,299.00", "1.299,00 €", "12,5", "￥99", "-3", "5-7", "abc", None], dtype=object))
    assert numbers[:5].tolist() == [1299.0, 1299.0, 12.5, 99.0, -3.0] and numbers[5:].isna().all()
    written = {"4.44e-16": 4.44e-16, "4,01E+10": 4.01e10, "1 299,50 kr": 1299.5, "12 345 678": 12345678, "USD -5": -5}
    numbers = to_number(pd.Series(list(written), dtype=object))
    assert numbers.tolist() == pytest.approx(list(written.values()), rel=1e-12)
    none = ["DVM-60 2 PK", "535609 5 PK", "12E4", "12 PK/12 OZ"]  # a hyphen after a letter, two numbers, a code
    assert to_number(pd.Series(none, dtype=object)).isna().all()
    days = to_date(
        pd.Series(["2024-05-31", "31.05.2024", "5/31/2024", "2024年5月31日", "2024-02-30", "soon"], dtype=object)
    )
    assert (days[:4] == pd.Timestamp("2024-05-31")).all() and days[4:].isna().all()
    assert to_date(pd.Series(["2024/5/3", "2024-5-3 9:30"], dtype=object)).dt.day.tolist() == [3, 3]


def test_impossible_values_are_named():
    price = [f"{10 + i % 7}.99" for i in range(60)]
    price[3], price[5], price[7], price[9] = "0", "9999999", "call us", "€12"
    price[20:50] = [f"${p}" for p in price[20:50]]
    day = [f"2024-01-{1 + i % 28:02d}" for i in range(60)]
    day[1], day[2] = "2024-02-31", "2999-01-01"
    text = [f"lamp {i} with a cable of {i} cm" if i % 2 else f"lamp {i} with a cable of {i} inch" for i in range(60)]
    text[4], text[6:40] = "???", [None] * 34
    records = records_of(title=text, price=price, day=day)
    kinds = column_kinds(records)
    assert kinds == {"title": "text", "price": "price", "day": "date"}
    found = names(check_values(records, kinds))
    where = {
        "price_not_positive:price": ["row 3"],
        "price_far_out:price": ["row 5"],
        "not_a_number:price": ["row 7"],
        "not_a_date:day": ["row 1"],
        "date_out_of_range:day": ["row 2"],
        "no_letter_or_digit:title": ["row 4"],
    }
    for name, places in where.items():
        assert found[name]["where"] == places, name
    assert found["missing:title"]["count"] == 34 and {"currencies_mixed:price", "units_mixed:title"} <= set(found)


def test_chinese_prices_dates_and_sources():
    price = [f"{100 + i % 50}元" for i in range(40)]
    price[3], price[5], price[7] = "0元", "99999999元", "$120"
    day = [f"2024年{1 + i % 12}月{1 + i % 28}日" for i in range(40)]
    day[2], day[4], day[6] = "2024年2月30日", "2999年1月1日", "2024-3-5"
    columns = {
        "售价": price,
        "标价": [p.rstrip("元$") for p in price],
        "上架": day,
        "评价": [str(i % 5) for i in range(40)],
    }
    records = records_of(**columns, merchant_id=[str(i % 3) for i in range(40)])
    kinds = column_kinds(records)
    assert kinds == {"售价": "price", "标价": "price", "上架": "date", "评价": "number", "merchant_id": "number"}
    found = names(check_values(records, kinds))
    for name, row in {"price_not_positive:售价": 3, "price_far_out:售价": 5, "currencies_mixed:售价": 7}.items():
        assert found[name]["where"] in ([f"row {row}"], []) and str(price[row]) in found[name]["examples"][0]["text"]
    assert found["not_a_date:上架"]["where"] == ["row 2"] and found["date_out_of_range:上架"]["where"] == ["row 4"]
    assert [c["records"] for c in coverage(records, kinds)["merchant_id"]] == [14, 13, 13]  # sources by number
    same = records_of(price=[f"USD {i + 9}" if i % 2 else f"${i + 9}" for i in range(40)])
    assert not check_values(same, column_kinds(same))  # two ways to write one currency


def test_ounces_beside_millilitres_are_mixed_and_beside_pounds_are_not():
    can = [f"{8 + i % 9} oz" if i % 3 else "355 ml" for i in range(60)]
    meat = [f"{8 + i % 9} oz" if i % 3 else "500 ml" if i % 2 else f"{1 + i % 4} lb" for i in range(60)]
    records = records_of(size=can, pack=meat)
    found = names(check_values(records, column_kinds(records)))
    assert found["units_mixed:size"]["count"] == 20 and "ml 20" in found["units_mixed:size"]["effect"]
    assert "ml" not in found["units_mixed:pack"]["effect"].partition(".")[0]


def test_numbers_that_cannot_be_are_named_and_sound_ones_are_not():
    steps = [round(1.13 ** (i % 40), 2) for i in range(200)]
    weight = [f"{s} kg" if i % 3 else f"{round(s * 1000)} g" for i, s in enumerate(steps)]
    weight[3], weight[5], weight[7] = "0 g", "-1 kg", "900000 kg"
    stock = [str(i * i % 97) for i in range(200)]
    stock[11], stock[13] = "-4", "99999999"
    rating = [f"{3 + i % 5 / 2}" for i in range(200)]
    rating[17], rating[19] = "45", "-1"
    ean = [f"40{i * 7919:011d}" for i in range(200)]
    ean[23] = "99999999"
    offset = [str((-1) ** i * (i + 1)) for i in range(200)]  # the sign says something
    tail = [str(round(math.exp(-3 * math.log(1 - i / 200.5)), 2)) for i in range(200)]  # a long tail is no error
    records = records_of(weight=weight, stock=stock, rating=rating, ean=ean, code=ean[::-1], offset=offset, tail=tail)
    found = names(check_values(records, column_kinds(records)))
    where = {
        "number_not_positive:weight": ["row 3", "row 5"],
        "number_far_out:weight": ["row 7"],
        "number_negative:stock": ["row 11"],
        "number_far_out:stock": ["row 13"],
        "off_scale:rating": ["row 17", "row 19"],
    }
    assert {name: found[name]["where"] for name in where} == where
    assert set(found) == {*where, "units_mixed:weight"}
    assert found["number_far_out:weight"]["level"] == "note" and " g." in found["number_far_out:weight"]["effect"]
    assert len(found["number_not_positive:weight"]["examples"]) == 2 and found["off_scale:rating"]["level"] == "warning"


def test_amounts_come_in_one_unit():
    numbers, thing = column_numbers(
        pd.Series(["1 TB", "500GB", "250 gb", "2000000 MB", None] * 5, dtype=object), "text"
    )
    assert thing == "storage" and numbers[:4].tolist() == [1000, 500, 250, 2000] and numbers[4:5].isna().all()
    numbers, thing = column_numbers(pd.Series(["15.6 in", "40 cm", "13,3″"] * 9, dtype=object), "category")
    assert thing == "length" and numbers[:3].round(2).tolist() == [39.62, 40, 33.78]
    assert column_numbers(pd.Series(["3 pieces", "4 pieces"] * 9, dtype=object), "text")[0].isna().all()
    assert usual_range(pd.Series([10.0] * 30))[1] == pytest.approx(10 * math.exp(6 * 0.35))


def test_cleaning_an_amount_does_not_change_what_the_audit_reads():
    written = {
        "storage": ["1,000 gigabytes", "2 TB", "750 GB", "64 gigs", "3000000 kilobytes"],
        "volume": ["12 fluid ounces", "500 毫升", "1 ltr", "33 centilitres", "750 ml"],
        "weight": ["500 grams", "2 lbs", "1.5 公斤", "250 毫克", "3 kilos"],
        "length": ["15.6 inches", "40 厘米", "2 meters", "105mm", "6 feet"],
    }
    for thing, texts in written.items():
        raw, cleaned = ([clean(text) for text in texts] for clean in (str, clean_text))
        numbers = [column_numbers(pd.Series(own * 4, dtype=object), "text") for own in (raw, cleaned)]
        assert [own[1] for own in numbers] == [thing, thing] and raw != cleaned
        assert numbers[0][0].notna().all() and np.allclose(numbers[0][0], numbers[1][0], rtol=5e-3)  # three digits


BROKEN = {
    "mojibake": "CafetiÃ¨re dâ€™acier",
    "html": "lamp <b>new</b> &amp; bright",
    "control_characters": "lamp\x07 lamp",
    "zero_width": "la\u200bmp",
    "full_width": "ｌａｍｐ １２",
    "replacement_character": "Num\ufffdrique",
    "simplified_traditional_mix": "蓝牙耳机 藍牙",
    "mixed_scripts": "Nikоn camera",  # the o is Cyrillic
}
SOUND = ["Cafetière d’acier 5″", "lamp < 5 & > 3", "lampe à poser", "液晶电视，黑色（新款）", "Никон camera"]
SOUND += ["a\tb", "50 µm", "AT&T phone"]


def test_damaged_text_is_named_and_sound_text_is_not():
    records = records_of(title=[*BROKEN.values(), *SOUND])
    found = names(check_text(records, {"title": "text"}))
    for i, name in enumerate(BROKEN):
        assert found[name]["where"] == [f"row {i}"], name


def test_chinese_read_as_gbk_and_a_column_in_two_forms():
    simplified, traditional = [f"蓝牙耳机 {i}" for i in range(40)], [f"藍牙耳機 {i}" for i in range(5)]
    found = names(check_text(records_of(title=[*simplified, *traditional, "鎵嬫満 64GB"]), {"title": "text"}))
    assert found["mojibake"]["where"] == ["row 45"] and clean_text("鎵嬫満 64GB") == "手机 64GB"
    assert found["simplified_traditional_mix"]["where"] == [f"row {i}" for i in range(40, 45)]
    for titles in (simplified, traditional, [*simplified, traditional[0]]):  # one name in the other form is a name
        assert not check_text(records_of(title=titles), {"title": "text"})


def test_languages_side_by_side():
    german = ["die Lampe mit dem Schalter für das Bad und den Flur", "das Kabel ist nicht bei der Lampe"] * 5
    english = ["the lamp with a switch for your bath and the hall", "this cable is not with the lamp by us"] * 20
    found = check_text(records_of(title=german + english), {"title": "text"})
    assert names(found)["languages_mixed:title"]["count"] == 10
    assert not check_text(records_of(title=english), {"title": "text"})
