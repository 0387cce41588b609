//! Answers that follow each kind of instruction and answers that do not, written by hand.

use serde_json::json;

use super::*;

fn parse(id: &str, kwargs: &str) -> Instruction {
    Instruction::parse(id, &serde_json::from_str(kwargs).unwrap()).unwrap()
}

/// An instruction, answers that follow it, answers that do not.
type Case = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const CASES: [Case; 37] = [
    (
        "keywords:existence",
        r#"{"keywords": ["correlated", "experiencing"]}"#,
        &[
            "Correlated things, EXPERIENCING it.",
            "uncorrelated, experiencing",
        ],
        &["correlated only", "experience correlated"],
    ),
    (
        "keywords:frequency",
        r#"{"relation": "at least", "keyword": "story", "frequency": 2}"#,
        &["A story, a Story.", "story story story"],
        &["One story.", "stories, story"],
    ),
    (
        "keywords:frequency",
        r#"{"relation": "less than", "keyword": "war", "frequency": 2}"#,
        &["One war.", "peace"],
        &["war and war", "warm war"],
    ),
    (
        "keywords:forbidden_words",
        r#"{"forbidden_words": ["rock", "roll"]}"#,
        &["A rocket and a rocky scroll.", "stone"],
        &["A Rock.", "roll, please", "rock-solid"],
    ),
    (
        "keywords:letter_frequency",
        r##"{"let_relation": "at least", "letter": "#", "let_frequency": 3}"##,
        &["# one ## two", "####"],
        &["# # two", "none"],
    ),
    (
        "keywords:letter_frequency",
        r#"{"let_relation": "less than", "letter": "q", "let_frequency": 2}"#,
        &["Quick fox", "nothing"],
        &["Quick queen", "qq"],
    ),
    (
        "language:response_language",
        r#"{"language": "de"}"#,
        &["Das ist nicht der richtige Weg, und wir wissen es auch.", "42"],
        &["This is the right way, and we know it."],
    ),
    (
        "language:response_language",
        r#"{"language": "kn"}"#,
        &["ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ. (OK)"],
        &["The weather is good today."],
    ),
    (
        "length_constraints:number_paragraphs",
        r#"{"num_paragraphs": 3}"#,
        &[
            "one\n***\ntwo\n***\nthree",
            "***\none\n***\ntwo\n***\nthree\n***\n",
        ],
        &["one\n***\ntwo", "one\n***\n***\nthree", "one\n\ntwo\n\nthree"],
    ),
    (
        "length_constraints:number_words",
        r#"{"relation": "at least", "num_words": 4}"#,
        &["one two three four", "it's three-part"],
        &["one two three", "... ! ,"],
    ),
    (
        "length_constraints:number_words",
        r#"{"relation": "less than", "num_words": 3}"#,
        &["one two", "one."],
        &["one two three"],
    ),
    (
        "length_constraints:number_sentences",
        r#"{"relation": "at least", "num_sentences": 3}"#,
        &[
            "One. Two! Three?",
            "He asked \"Why?\" She did not say. Then they left",
            "1. Drink water.\n2. Eat well.",
        ],
        &[
            "One. Two.",
            "Dr. Smith met Mr. A. Jones at 3.5 p.m. on Monday.",
            "Well... you see",
        ],
    ),
    (
        "length_constraints:number_sentences",
        r#"{"relation": "less than", "num_sentences": 3}"#,
        &["One. Two.", "1. An item, e.g. this one", "No end at all"],
        &["One. Two. Three", "A! B! C!"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        r#"{"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "President"}"#,
        &["a b\n\npresident, c\n\nd", "a\n\n\"President\" b\n\n\n\nc"],
        &[
            "president\n\nb\n\nc",
            "a\n\npresident b",
            "a\n\nPresidential b\n\nc",
            "a\n\nthe president\n\nb",
            "a\n\n**President** b\n\nc",
        ],
    ),
    (
        "detectable_content:postscript",
        r#"{"postscript_marker": "P.S."}"#,
        &[
            "Bye.\nP.S. I forgot.",
            "Bye. p. s. more",
            "P.S. all",
            "P.P.S. two",
        ],
        &["Bye.", "P.  S. too far", "PS no points"],
    ),
    (
        "detectable_content:postscript",
        r#"{"postscript_marker": "P.P.S"}"#,
        &["Bye.\nP.P.S I forgot.", "P. P. S. more", "p.p.s. small"],
        &["Bye.\nP.S. no", "PPS"],
    ),
    (
        "detectable_content:number_placeholders",
        r#"{"num_placeholders": 2}"#,
        &["[name] of [address]", "[a][b][c]"],
        &["[name] only", "[open and (b)", "[one\ntwo] [three]"],
    ),
    (
        "detectable_format:number_bullet_lists",
        r#"{"num_bullets": 2}"#,
        &["* one\n* two", "Points:\n- one\n  - two\nEnd", "* **one**\n*two"],
        &[
            "* one",
            "* one\n* two\n* three",
            "**one**\n**two**",
            "1. one\n2. two",
        ],
    ),
    (
        "detectable_format:title",
        "{}",
        &["<<poem of joy>>\ntext", "text << A >> text"],
        &["<poem>", "<<>>", "<<a\nb>>", "<< >>"],
    ),
    (
        "detectable_format:constrained_response",
        "{}",
        &["My answer is yes.", "Well. My answer is maybe. So."],
        &["My answer is yes", "my answer is no.", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        r#"{"num_highlights": 2}"#,
        &[
            "*one* and *two*",
            "**one** and *two*",
            "*a*\n*b*\n*c*",
            "* **one**: text",
            "***one***",
        ],
        &["*one*", "* one\n* two", "** ** *x*", "***"],
    ),
    (
        "detectable_format:multiple_sections",
        r#"{"section_spliter": "SECTION", "num_sections": 2}"#,
        &[
            "SECTION 1\na\nSECTION 2\nb",
            "SECTION 1 SECTION 2 SECTION 3",
            "**SECTION 1:** a\n**SECTION 2:** b",
        ],
        &["SECTION 1\na", "Section 1 Section 2", "SECTION A SECTION B"],
    ),
    (
        "detectable_format:json_format",
        "{}",
        &[
            "{\"a\": [1, 2]}",
            "```json\n{\"a\": 1}\n```",
            "```\n[1]\n```",
            "```JSON {} ```",
        ],
        &["Here: {\"a\": 1}", "{a: 1}", "```json\n{\n```"],
    ),
    (
        "combination:repeat_prompt",
        r#"{"prompt_to_repeat": "Write a Poem. "}"#,
        &["Write a poem.\nRoses", "  write a poem. ok"],
        &["Sure! Write a poem.", "Write a poems"],
    ),
    (
        "combination:two_responses",
        "{}",
        &["one\n******\ntwo", "******\none\n******\ntwo\n******"],
        &[
            "one",
            "one\n******\none",
            "one\n******\n\n******\ntwo",
            "a ****** b ****** c",
            "one *** two",
        ],
    ),
    (
        "change_case:english_capital",
        "{}",
        &["THE SEA IS THAT WAY, AND 5 MILES!", "HELLO"],
        &["The sea", "123", "DAS IST NICHT DER WEG UND WIR WISSEN ES AUCH"],
    ),
    (
        "change_case:english_lowercase",
        "{}",
        &["the sea is that way, and 5 miles!", "hello"],
        &["The sea", "123", "das ist nicht der weg und wir wissen es auch"],
    ),
    (
        "change_case:capital_word_frequency",
        r#"{"capital_relation": "at least", "capital_frequency": 2}"#,
        &[
            "I say NO",
            "STOP, GO-NOW",
            "NATO and UN",
            "DON'T",
            "(I) am \"OK\"",
        ],
        &["I say No", "STOP", "stop Go", "in the U.S.", "TO-DO"],
    ),
    (
        "change_case:capital_word_frequency",
        r#"{"capital_relation": "less than", "capital_frequency": 2}"#,
        &["STOP it", "none"],
        &["STOP IT"],
    ),
    (
        "startend:end_checker",
        r#"{"end_phrase": "Is there anything else I can help with?"}"#,
        &[
            "Done. Is there anything else I can help with?",
            "\"is there anything else i can help with?\"\n",
        ],
        &[
            "Is there anything else I can help with? Bye",
            "Is there anything else",
        ],
    ),
    (
        "startend:quotation",
        "{}",
        &["\"all of it\"", "  \"a \"b\" c\"\n"],
        &["\"half", "none", "\"", "“curly”"],
    ),
    (
        "punctuation:no_comma",
        "{}",
        &["No such sign here; none.", "1.000"],
        &["one, two", "1,000"],
    ),
    (
        "keywords:existence",
        r#"{"keywords": ["le", "hou"]}"#,
        &["hourly table le"],
        &["le"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        r#"{"num_highlights": 1}"#,
        &["a * b *c* d", "***both***"],
        &["2 * 3", "a ** b"],
    ),
    (
        "detectable_content:number_placeholders",
        r#"{"num_placeholders": 1}"#,
        &["[Your Name]", "x[0]"],
        &["] [", "()"],
    ),
    (
        "language:response_language",
        r#"{"language": "ur"}"#,
        &["آج موسم اچھا ہے اور ہم دوستوں کے ساتھ جا رہے ہیں۔"],
        &["الطقس جميل اليوم ونحن ذاهبون إلى البحر."],
    ),
    (
        "length_constraints:number_paragraphs",
        r#"{"num_paragraphs": 2}"#,
        &["one *** two"],
        &["one", "one *** two *** three"],
    ),
];

#[test]
fn every_kind_accepts_and_rejects() {
    let mut kinds = std::collections::BTreeSet::new();
    for (id, kwargs, good, bad) in CASES {
        let instruction = parse(id, kwargs);
        for answer in good {
            assert!(
                instruction.strict(answer),
                "{id} {kwargs}: {answer:?} should follow"
            );
            assert!(
                instruction.loose(answer),
                "{id} {kwargs}: {answer:?} should follow loosely"
            );
        }
        for answer in bad {
            assert!(
                !instruction.strict(answer),
                "{id} {kwargs}: {answer:?} should not follow"
            );
        }
        for empty in ["", " \n"] {
            assert!(!instruction.strict(empty) && !instruction.loose(empty), "{id}");
        }
        kinds.insert(id);
    }
    assert_eq!(kinds.len(), 25);
}

#[test]
fn loose_forgives_what_surrounds_an_answer() {
    let lower = parse("change_case:english_lowercase", "{}");
    for answer in [
        "Sure!\nthe sea is there",
        "the sea is there\nBye!",
        "Sure!\nthe sea is there\nBye!",
    ] {
        assert!(!lower.strict(answer) && lower.loose(answer), "{answer:?}");
    }
    assert!(!lower.loose("Sure!\nOkay!\nthe sea is there"));
    let end = parse("startend:end_checker", r#"{"end_phrase": "Bye."}"#);
    assert!(!end.strict("**Bye.**") && end.loose("**Bye.**"));
    let json = parse("detectable_format:json_format", "{}");
    assert!(!json.strict("Here it is:\n{}") && json.loose("Here it is:\n{}"));
}

#[test]
fn arguments_that_are_not_there() {
    for (id, kwargs, expected) in [
        ("keywords:colour", json!({}), "25 kinds"),
        (
            "keywords:existence",
            json!({}),
            "keywords: expected a list of texts, found null",
        ),
        ("keywords:existence", json!({"keywords": [1]}), "[1]"),
        ("keywords:letter_frequency", json!({"letter": "ab"}), "one letter"),
        (
            "length_constraints:number_words",
            json!({"relation": "at most", "num_words": 3}),
            "\"at least\" or \"less than\"",
        ),
        (
            "length_constraints:number_words",
            json!({"relation": "at least", "num_words": 3.5}),
            "a whole number",
        ),
        ("language:response_language", json!({"language": "tlh"}), "tlh"),
    ] {
        let error = Instruction::parse(id, &kwargs).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Published files name every argument, most of them null.
    let nulls = json!({"num_words": null, "keywords": ["a"]});
    assert!(Instruction::parse("keywords:existence", &nulls).is_ok());
}
