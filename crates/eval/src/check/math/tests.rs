use super::*;

#[test]
fn the_last_box_counts() {
    for (text, expected) in [
        (r"so \boxed{204}", "204"),
        (r"first \boxed{1}, no, \boxed{2}.", "2"),
        (r"\fbox{3} then \boxed{4}", "4"),
        (r"\boxed{4} then \fbox{3}", "3"),
        (r"\boxed{\text{25}}", r"\text{25}"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"$\boxed 7$", "7"),
        // One that the end of the answer cut.
        (r"\boxed{5} and \boxed{6", "5"),
        ("The answer is 42.", "42"),
        ("The final answer is: **42**", "42"),
        ("Answer: $x = 5$ of course", "x = 5"),
        ("work 1 2 3\n#### 1,234", "1,234"),
        ("The answer is 3 apples and 4 pears", "3"),
        ("The answer is blue.", "blue"),
        ("So we get 12, then 13.", "13"),
        ("from 5 to -3", "-3"),
        ("it is 10-3", "3"),
        ("about .5", ".5"),
        ("So the answer is $25 for 2 books.", "25"),
        ("The answer is $25, not $30.", "25"),
        (r"The answer is \(\frac{1}{2}\).", r"\frac{1}{2}"),
        (
            "The answer is\n\\[\n\\frac{1}{2}\n\\]\nas 3 shows",
            r"\frac{1}{2}",
        ),
        ("The answer is $$\n5\n$$ or so, by 3", "5"),
        ("The answer is (3, 4).", "(3, 4)"),
        (r"The answer is \{1, 2\}, by 3", r"\{1, 2\}"),
        ("The answer is (3, 4) + (1, 1) = (4, 5).", "(4, 5)"),
        ("The answer is 12 + 5 = 17.", "17"),
        ("The answer is $5 * 3 = $15 for 2.", "15"),
        ("The answer is x = $5$. So y = 3.", "5"),
        ("The answer is $12 + 5$ = $17$.", "17"),
        ("The answer is 17. So x = 4.", "17"),
        ("The answer is 17, so x = 4.", "17"),
        ("The answer is 17 because x = 4.", "17"),
        ("The answer is 17 (x = 4).", "17"),
        ("The answer is \u{2212}5.", "\u{2212}5"),
        ("from 5 to \u{2212}3", "\u{2212}3"),
        ("it is 10\u{2212}3", "3"),
    ] {
        assert_eq!(final_answer(text), Some(expected), "{text}");
    }
    for text in ["", "no number", r"\boxed{", r"\boxed{}}"] {
        assert!(!check(text, "1"), "{text}");
    }
}

#[test]
fn the_same_answer_in_many_forms() {
    for (found, expected) in [
        ("025", "25"),
        ("25", "025"),
        ("007", "7"),
        ("25.0", "25"),
        ("25.", "25"),
        ("+25", "25"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        ("1 234", "1234"),
        ("12,345,678.50", "12345678.5"),
        ("$25$", "25"),
        (r"\$25", "25"),
        (r"25\%", "25"),
        (r"30^\circ", "30"),
        (r"30^{\circ}", "30"),
        (r"\text{25}", "25"),
        (r"\textbf{25}", "25"),
        (r"25\text{ cm}", "25"),
        (r"25\ \mathrm{km}", "25"),
        ("25 cm", "25"),
        ("x = 25", "25"),
        ("{25}", "25"),
        ("(25)", "25"),
        ("**25**", "25"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac{1}{2}", "1/2"),
        (r"\tfrac12", "1/2"),
        (r"\frac{2}{4}", r"\frac12"),
        (r"-\frac{1}{2}", "-0.5"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"\frac{1}{-2}", "-.5"),
        (r"1\frac{1}{2}", "1.5"),
        (r"\frac{\frac12}{3}", "1/6"),
        ("4/2", "2"),
        (".50", "0.5"),
        ("\u{2212}3", "-3"),
        (r"1.2\times 10^{3}", "1200"),
        (r"5 \cdot 10^{-1}", "0.5"),
        ("1.2e3", "1200"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"(\frac12, 3.0)", "(0.5,3)"),
        (r"\{1, 2\}", r"\{1,2\}"),
        (r"2\sqrt{3}", r"2 \sqrt{3}"),
        (r"\text{Tuesday}", "Tuesday"),
        ("12 cm", "12"),
        ("12", "12 cm"),
        (r"12\ cm", "12"),
        (r"12\,cm", "12"),
        ("$12~cm$.", "12"),
        ("12 square meters", "12"),
        (r"25\text{ cm}^2", "25"),
        (r"25\ \text{cm}^{2}", "25"),
        ("x = 1,234", "1234"),
        ("x = 1, y = 2", "x=1,y=2"),
        ("(x, y) = (1, 2)", "(1,2)"),
        (
            "340282366920938463463374607431768211457000",
            "340282366920938463463374607431768211457000",
        ),
    ] {
        assert!(same(found, expected), "{found} {expected}");
    }
    for (found, expected) in [
        ("24", "25"),
        ("", "25"),
        ("", ""),
        ("0.333", "1/3"),
        ("-25", "25"),
        ("250", "25"),
        ("1 2", "12"),
        ("1,23", "123"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2,3)", "(1,2)"),
        ("1/0", "1/0.0"),
        (r"\frac{1}{2", "0.5"),
        (r"\sqrt{2}", r"\sqrt{3}"),
        ("25 or 26", "25"),
        ("2x", "2"),
        ("2", "2x"),
        ("3i", "3"),
        ("2x", "2y"),
        ("2 x", "2 y"),
        (r"2 \pi", "2"),
        ("12cm", "12"),
        (r"25\text{ cm}^2", "625"),
        ("x=1, y=2", "2"),
        ("x, y = 2", "2"),
        ("x=7,y=2", "x=1,y=2"),
        (r"\", "1"),
        ("é\\é", "1"),
    ] {
        assert!(!same(found, expected), "{found} {expected}");
    }
}

#[test]
fn whole_answers() {
    assert!(check(
        "Let us see.\nThe total is $\\boxed{\\dfrac{408}{2}}$ minutes.",
        "204"
    ));
    assert!(check("So the sum is \\boxed{016}.", "16"));
    assert!(check(r"The answer is \(\frac{1}{2}\).", "1/2"));
    assert!(check("The answer is \u{2212}5.", "-5"));
    assert!(check("It fell to \u{2212}5", "-5"));
    assert!(check(r"\boxed{25\text{ cm}^2}", "25"));
    for (text, expected) in [
        (r"\boxed{2x}", "2"),
        (r"\boxed{3i}", "3"),
        (r"\boxed{x=1, y=2}", "2"),
    ] {
        assert!(!check(text, expected), "{text}");
    }
    assert!(!check(
        "I stop here, with 204 in the middle and 3 at the end",
        "204"
    ));
}
