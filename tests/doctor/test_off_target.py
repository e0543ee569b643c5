"""Completions in another language than asked for: what is identified, and what is an accident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from transformers.models.m2m_100 import tokenization_m2m_100 as m2m
from transformers.models.mbart50 import tokenization_mbart50 as mbart50
from transformers.models.nllb import tokenization_nllb as nllb

from counterpoint.data.language_codes import NEAR, SHORT, language_of
from counterpoint.doctor import off_target
from counterpoint.doctor.findings import Finding
from counterpoint.doctor.of_languages import of_languages
from counterpoint.doctor.off_target import Languages, looking_at
from tests.doctor.patients import Patient, chatting, healthy, translating

pytest.importorskip("py3langid")

SAID: dict[str, Sequence[str]] = {
    "en": (
        "The committee will meet again next week to talk about the new budget.",
        "My grandmother used to bake bread every Sunday morning before church.",
        "He left the house without saying a word to anyone in his family.",
    ),
    "de": (
        "Der Ausschuss wird nächste Woche wieder über den neuen Haushalt sprechen.",
        "Meine Großmutter backte jeden Sonntagmorgen vor der Kirche ihr Brot.",
        "Er verließ das Haus, ohne jemandem in seiner Familie ein Wort zu sagen.",
    ),
    "zh": (
        "委员会下周将再次开会，讨论新的预算。",
        "我的祖母每个星期天早上去教堂之前都会烤面包。",
        "他一句话也没对家里人说就离开了家。",
    ),
    "fr": (
        "Le comité se réunira de nouveau la semaine prochaine pour parler du budget.",
        "Ma grand-mère faisait du pain tous les dimanches matin avant la messe.",
        "Il a quitté la maison sans dire un mot à personne de sa famille.",
    ),
    "ru": (
        "Комитет снова соберётся на следующей неделе, чтобы обсудить новый бюджет.",
        "Моя бабушка пекла хлеб каждое воскресное утро перед церковью.",
        "Он вышел из дома, не сказав ни слова никому из своей семьи.",
    ),
    "ja": (
        "委員会は来週また集まって、新しい予算について話し合います。",
        "祖母は毎週日曜日の朝、教会に行く前にパンを焼いていました。",
        "彼は家族の誰にも一言も言わずに家を出ました。",
    ),
    "th": (
        "คณะกรรมการจะประชุมกันอีกครั้งในสัปดาห์หน้าเพื่อหารือเกี่ยวกับงบประมาณใหม่",
        "คุณยายของฉันอบขนมปังทุกเช้าวันอาทิตย์ก่อนไปโบสถ์",
        "เขาออกจากบ้านโดยไม่พูดอะไรกับใครในครอบครัวเลย",
    ),
}
CODES = {
    "en": ("eng_Latn", "en_XX", "en"),
    "de": ("deu_Latn", "de_DE", "de"),
    "zh": ("zho_Hans", "zh_CN", "zh", "zho_Hant", "zh-TW", "cmn_Hans"),
    "fr": ("fra_Latn", "fr_XX", "fr"),
    "ru": ("rus_Cyrl", "ru_RU", "ru"),
    "ja": ("jpn_Jpan", "ja_XX", "ja"),
    "th": ("tha_Thai", "th_TH", "th"),
}


@cache
def known() -> list[str]:
    return list(off_target._identifier().labels)


def looked(rows: Sequence[tuple[str, str, str]]) -> Languages:
    """What is found in rows of code, chosen and rejected."""
    found = looking_at(len(rows))
    for number, (code, chosen, rejected) in enumerate(rows):
        found.look(number, code, (chosen, rejected))
    return found


def warned(found: Languages) -> list[Finding]:
    return [finding for finding in of_languages("train", found) if finding.code == "CW130"]


@pytest.mark.parametrize("language", SAID)
def test_a_code_of_every_model_is_its_language(language: str) -> None:
    """Each sentence against the codes of each language: it is in its own, and in no other."""
    told = 0
    for sentence in SAID[language]:
        for asked, codes in CODES.items():
            found = looked([(code, sentence, sentence) for code in codes])
            assert found.chosen.told in (0, len(codes))
            assert found.chosen.off.count == (0 if asked == language else found.chosen.told)
            assert found.rejected.found == found.chosen.found
            told += bool(found.chosen.told)
    assert told >= 2 * len(CODES)  # one sentence of three may be unsure


def test_the_codes_of_models_are_known_or_said_to_be_unknown() -> None:
    """Of M2M-100's 100 languages 90, of mBART-50's all 52; none is taken for another one."""
    own = known()
    assert set(SHORT.values()) <= set(own)
    assert {one for near in NEAR for one in near} <= set(own)
    unknown = {code for code in m2m.FAIRSEQ_LANGUAGE_CODES["m2m100"] if not language_of(code, own)}
    assert unknown == {
        *("ast", "ceb", "ff", "ilo", "sd", "ss", "su", "tn", "wo", "yi")  # no such class
    }
    assert [code for code in mbart50.FAIRSEQ_LANGUAGE_CODES if not language_of(code, own)] == []
    told = [code for code in nllb.FAIRSEQ_LANGUAGE_CODES if language_of(code, own)]
    assert len(told) == 129
    # the same language by its long and its short code
    assert language_of("zho_Hans", own) == language_of("zh_CN", own) == language_of("zh", own)
    assert language_of("ceb_Latn", own) is None


def test_rows_are_named_with_the_share_of_each_side() -> None:
    right, wrong = SAID["zh"], SAID["en"]
    rows = [("zho_Hans", right[n % 3], right[(n + 1) % 3]) for n in range(40)]
    rows[5:9] = [("zho_Hans", wrong[n % 3], right[0]) for n in range(4)]
    (finding,) = warned(looked(rows))
    assert finding.severity == "warning"
    assert finding.rows == (5, 6, 7, 8)
    assert finding.seen == (
        "train: 4 of 40 chosen (10.0%) and 0 of 40 rejected (0.0%) are in another language "
        "(4 x en for zho_Hans)."
    )


def test_a_few_texts_among_many_are_no_alarm_but_are_counted() -> None:
    """As many as an identifier may be mistaken: 2 of 40, or 1 in 100."""
    right, wrong = SAID["de"], SAID["fr"]
    rows = [("de", right[n % 3], right[(n + 1) % 3]) for n in range(40)]
    rows[5:7] = [("de", wrong[0], right[0])] * 2
    found = looked(rows)
    assert warned(found) == []
    (note,) = of_languages("train", found)
    assert note.seen.endswith(
        "2 of 40 chosen (5.0%) and 0 of 40 rejected (0.0%) seem to be in another one."
    )
    many = replace(found.chosen, told=1000, off=replace(found.chosen.off, count=19))
    assert not many.no_accident
    assert replace(many, off=replace(many.off, count=20)).no_accident


@pytest.mark.parametrize(
    "text",
    ["OK", "好的", "1984", "Tokyo", "", "12 + 30 = 42", "东京", "zwei", "!!!", "http://a.b/c"],
)
def test_what_is_too_short_to_tell_is_in_no_language(text: str) -> None:
    found = looked([("eng_Latn", text, text)] * 50)
    assert (found.chosen.told, found.rejected.told) == (0, 0)
    assert warned(found) == []


def test_a_language_that_the_identifier_does_not_know_is_skipped_and_counted() -> None:
    rows = [("ceb_Latn", *SAID["en"][:2])] * 7 + [("gmw", *SAID["en"][:2])]
    (note,) = of_languages("train", looked(rows))
    assert note.code == "CN130"
    assert "unknown to the identifier: 7 x ceb_Latn, 1 x gmw" in note.seen


def test_of_a_large_set_rows_are_looked_at_from_its_first_to_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(off_target, "IDENTIFIED", 10)
    found = looked([("en", SAID["en"][0], SAID["en"][1])] * 95)
    assert (found.every, found.asked, found.chosen.told) == (10, 10, 10)
    (note,) = of_languages("train", found)
    assert note.seen.startswith("train: one row in 10 was looked at; of 10 rows that ask")


def test_without_the_identifier_the_doctor_says_how_to_install_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(off_target, "_identifier", lambda: None)
    notes = codes(translating(str(tmp_path / "out")), "CN130")
    assert [note.severity for note in notes] == ["note"]
    assert "160 rows ask for a language" in notes[0].seen
    assert " pip install " in notes[0].seen
    assert "'py3langid>=0.4'" in notes[0].seen


def codes(patient: Patient, *wanted: str) -> list[Finding]:
    report = patient.examined()
    assert [finding for finding in report.findings if finding.code == "CW901"] == []
    return [finding for finding in report.findings if finding.code in wanted]


def test_a_decoder_is_looked_at_where_its_rows_ask_for_a_language(tmp_path: Any) -> None:
    whole = healthy(str(tmp_path / "out"))
    assert codes(whole, "CN130", "CW130") == []
    rows = [
        {
            "prompt": f"{n} {SAID['zh'][n % 3]}",
            "chosen": SAID["en"][n % 3],
            "rejected": f"{n}: {said}",
        }
        for n in range(12)
        for said in [SAID["en" if n % 2 else "zh"][(n + 1) % 3]]
    ]
    assert codes(replace(whole, rows=rows), "CN130", "CW130") == []
    asking = [{**row, "target_lang": "en"} for row in rows]
    (found,) = codes(replace(whole, rows=asking), "CW130")
    assert "0 of 12 chosen (0.0%) and 6 of 12 rejected (50.0%)" in found.seen
    assert found.rows == (0, 2, 4, 6, 8)


def test_turns_are_read_as_their_text(tmp_path: Any) -> None:
    whole = chatting(str(tmp_path / "out"))
    rows = [{**row, "target_lang": "zh-CN"} for row in whole.rows]
    assert codes(replace(whole, rows=rows), "CW130") == []  # too short
    for number, row in enumerate(rows):
        row["chosen"] = [{"role": "assistant", "content": SAID["en"][number % 3]}]
    (found,) = codes(replace(whole, rows=rows), "CW130")
    assert found.seen.startswith("train: 20 of 20 chosen (100.0%) and 0 of 0 rejected (0.0%)")
