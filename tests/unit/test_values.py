"""Values and text: what is damaged is named, what is sound is not."""

import pandas as pd

from prodsim.quality.values import check_text, check_values, column_kinds, to_date, to_number


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
    days = to_date(pd.Series(["2024-05-31", "31.05.2024", "5/31/2024", "2024-02-30", "soon"], dtype=object))
    assert (days[:3] == pd.Timestamp("2024-05-31")).all() and days[3:].isna().all()


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


def test_languages_side_by_side():
    german = ["die Lampe mit dem Schalter für das Bad und den Flur", "das Kabel ist nicht bei der Lampe"] * 5
    english = ["the lamp with a switch for your bath and the hall", "this cable is not with the lamp by us"] * 20
    found = check_text(records_of(title=german + english), {"title": "text"})
    assert names(found)["languages_mixed:title"]["count"] == 10
    assert not check_text(records_of(title=english), {"title": "text"})
