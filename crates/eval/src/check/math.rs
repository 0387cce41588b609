//! Final answers in mathematical writing: finding the one that a text gives, and comparing two.

/// Whether the final answer of `text` is `expected`.
pub fn check(text: &str, expected: &str) -> bool {
    final_answer(text).is_some_and(|found| same(found, expected))
}

/// The answer that a text ends with: what stands in its last complete `\boxed{}` or `\fbox{}`; without one, what
/// follows the last "answer is", "answer:" or "####" on its line; without that, the last number.
pub fn final_answer(text: &str) -> Option<&str> {
    last_boxed(text)
        .or_else(|| after_phrase(text))
        .or_else(|| numbers(text).last())
}

fn last_boxed(text: &str) -> Option<&str> {
    let mut found = None;
    for opening in ["\\boxed", "\\fbox"] {
        for (at, _) in text.match_indices(opening) {
            let inner = text[at + opening.len()..].trim_start();
            let content = match inner.strip_prefix('{') {
                Some(_) => braced(inner),
                // `\boxed 5` boxes one token; a number is what is meant.
                None => numbers(inner).next().filter(|number| inner.starts_with(number)),
            };
            if let Some(content) = content {
                found = found.max(Some((at, content)));
            }
        }
    }
    found.map(|(_, content)| content)
}

/// The content of the braces that a text begins with.
fn braced(text: &str) -> Option<&str> {
    let mut depth = 0usize;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return text.get(1..at);
                }
            }
            _ => {}
        }
    }
    None
}

fn after_phrase(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let phrases = ["answer is", "answer:", "answer to the problem is", "####"];
    let (at, phrase) = phrases
        .into_iter()
        .filter_map(|phrase| lower.rfind(phrase).map(|at| (at, phrase)))
        .max()?;
    let rest = text
        .get(at + phrase.len()..)?
        .trim_start_matches([' ', ':', '*', '\n']);
    let line = rest.lines().next()?;
    if let Some(inner) = line.strip_prefix('$') {
        let inner = inner.trim_start_matches('$');
        return inner.find('$').map(|end| &inner[..end]);
    }
    let answer = line.trim_end_matches(['.', '*', ' ', '!']);
    match number(answer) {
        Some(_) => Some(answer),
        None => numbers(line).next().or((!answer.is_empty()).then_some(answer)),
    }
}

/// The numbers of a text: digits, with thousands separators, a decimal point, a slash, a sign.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + text[from..].find(|c: char| c.is_ascii_digit())?;
        let mut end = start;
        while digit(end) || (matches!(text.as_bytes().get(end), Some(b',' | b'.' | b'/')) && digit(end + 1)) {
            end += 1;
        }
        from = end;
        let before = &text[..start];
        let begin = match before.strip_suffix('.').or(before.strip_suffix('-')) {
            // A sign or a point of its own, not one between two words or numbers.
            Some(more) if !more.ends_with(|c: char| c.is_alphanumeric() || c == '.' || c == ')') => {
                more.len()
            }
            _ => start,
        };
        Some(&text[begin..end])
    })
}

/// Whether two answers are the same: equal as numbers, part by part as tuples, or the same after what does not
/// matter (dollar signs, spaces, `\left`, `\text`, units of a number) is gone.
pub fn same(found: &str, expected: &str) -> bool {
    let (a, b) = (forms(found), forms(expected));
    a.iter().any(|a| b.iter().any(|b| same_form(a, b)))
}

fn same_form(a: &str, b: &str) -> bool {
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return a == b;
    }
    if let (Some((open, a)), Some((other, b))) = (tuple(a), tuple(b)) {
        return open == other && a.len() == b.len() && a.into_iter().zip(b).all(|(a, b)| same_form(a, b));
    }
    !a.is_empty() && a == b
}

/// The parts between the outermost commas of something in brackets, at least two.
fn tuple(text: &str) -> Option<(char, Vec<&str>)> {
    let open = text.chars().next().filter(|c| "([{".contains(*c) || *c == '\\')?;
    let inner = text
        .strip_prefix("\\{")
        .and_then(|text| text.strip_suffix("\\}"))
        .or_else(|| text.get(1..text.len().checked_sub(1)?))?;
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    (parts.len() > 1).then_some((open, parts))
}

/// An answer without what does not matter: with the text of `\text{}` and its like as it is, and without it.
fn forms(answer: &str) -> Vec<String> {
    let unwrapped = clean(&replace_text(answer, true));
    let dropped = clean(&replace_text(answer, false));
    let mut forms = vec![unwrapped];
    if !dropped.is_empty() && dropped != forms[0] {
        forms.push(dropped);
    }
    // A number with a unit that is no `\text`: "12 cm".
    let plain = forms[0]
        .trim_end_matches(|c: char| c.is_ascii_alphabetic())
        .to_owned();
    if plain.ends_with(|c: char| c.is_ascii_digit()) && plain != forms[0] && number(&plain).is_some() {
        forms.push(plain);
    }
    forms
}

fn replace_text(answer: &str, keep: bool) -> String {
    const COMMANDS: [&str; 8] = [
        "\\text",
        "\\textbf",
        "\\textit",
        "\\mathrm",
        "\\mathbf",
        "\\operatorname",
        "\\mbox",
        "\\rm",
    ];
    let mut text = answer.to_owned();
    let mut from = 0;
    while let Some(at) = text[from..].find('\\').map(|at| at + from) {
        let letters = text[at + 1..].find(|c: char| !c.is_ascii_alphabetic());
        let end = letters.map_or(text.len(), |length| at + 1 + length);
        let content = COMMANDS
            .contains(&&text[at..end])
            .then(|| braced(&text[end..]).map(str::to_owned))
            .flatten();
        match content {
            Some(content) => {
                let whole = at..end + content.len() + 2;
                text.replace_range(whole, if keep { &content } else { "" });
                from = at;
            }
            None => from = end.max(at + 1),
        }
        // `\\` and other signs: pass over both.
        while !text.is_char_boundary(from) {
            from += 1;
        }
    }
    text
}

fn clean(answer: &str) -> String {
    let mut text = answer.trim().to_owned();
    for (from, to) in [
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\displaystyle", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\degree", ""),
        ("\u{b0}", ""),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", ""),
        ("\\:", ""),
        ("\\ ", " "),
        ("~", " "),
        ("\u{a0}", " "),
        ("\\(", ""),
        ("\\)", ""),
        ("\\[", ""),
        ("\\]", ""),
        ("\\$", ""),
        ("$", ""),
        ("\\%", ""),
        ("%", ""),
        ("{,}", ","),
        ("\u{2212}", "-"),
        ("\u{2013}", "-"),
        ("**", ""),
    ] {
        text = text.replace(from, to);
    }
    // Between digits a space is a thousands separator before three digits, and else a gap.
    let bytes: Vec<char> = text.chars().collect();
    let mut compact = String::with_capacity(text.len());
    for (at, &c) in bytes.iter().enumerate() {
        if c.is_whitespace() {
            let after: String = bytes[at..].iter().skip_while(|c| c.is_whitespace()).collect();
            let run = after.chars().take_while(char::is_ascii_digit).count();
            let gap = run > 0 && run != 3 && compact.ends_with(|c: char| c.is_ascii_digit());
            if gap {
                compact.push(' ');
            }
            continue;
        }
        compact.push(c);
    }
    let text = compact.trim_end_matches(['.', ',', ';']);
    // `x = 5` gives 5.
    let text = text.rsplit('=').next().unwrap_or(text);
    let text = text.strip_prefix('+').unwrap_or(text);
    text.to_owned()
}

/// A number, exactly: numerator and denominator, in lowest terms, the denominator positive.
fn number(text: &str) -> Option<(i128, i128)> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix('-') {
        let (n, d) = number(rest)?;
        return Some((n.checked_neg()?, d));
    }
    if text.starts_with('{') && braced(text).is_some_and(|inner| inner.len() + 2 == text.len()) {
        return number(braced(text)?);
    }
    if let Some(inner) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        return (!inner.contains(['(', ',', ')']))
            .then(|| number(inner))
            .flatten();
    }
    if let Some((whole, fraction)) = text.split_once("\\frac") {
        let (top, rest) = argument(fraction)?;
        let (bottom, rest) = argument(rest)?;
        if !rest.trim().is_empty() {
            return None;
        }
        let fraction = divide(number(top)?, number(bottom)?)?;
        return match whole.trim() {
            "" => Some(fraction),
            // A mixed number.
            whole => {
                let whole = decimal(whole)?;
                let scaled = whole
                    .0
                    .checked_mul(fraction.1)?
                    .checked_add(fraction.0.checked_mul(whole.1)?)?;
                reduce(scaled, whole.1.checked_mul(fraction.1)?)
            }
        };
    }
    if let Some((top, bottom)) = text.rsplit_once('/') {
        return divide(number(top)?, number(bottom)?);
    }
    for sign in ["\\times10^", "\\cdot10^", "\u{d7}10^", "*10^"] {
        if let Some((factor, power)) = text.split_once(sign) {
            let (power, one) = number(power)?;
            return (one == 1).then(|| scale(number(factor)?, power)).flatten();
        }
    }
    decimal(text)
}

/// One argument of a command: braces or a single character.
fn argument(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    if text.starts_with('{') {
        let inner = braced(text)?;
        return Some((inner, text.get(inner.len() + 2..)?));
    }
    let c = text.chars().next()?;
    Some(text.split_at(c.len_utf8()))
}

fn decimal(text: &str) -> Option<(i128, i128)> {
    if let Some(at) = text.find(['e', 'E']) {
        let power: i128 = text.get(at + 1..)?.parse().ok()?;
        return scale(decimal(&text[..at])?, power);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = match whole.contains(',') {
        true => {
            let groups: Vec<&str> = whole.split(',').collect();
            let good = (1..=3).contains(&groups[0].len()) && groups[1..].iter().all(|group| group.len() == 3);
            good.then(|| groups.concat())?
        }
        false => whole.to_owned(),
    };
    let digits = whole + fraction;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    scale((digits.parse().ok()?, 1), -(fraction.len() as i128))
}

fn scale((n, d): (i128, i128), power: i128) -> Option<(i128, i128)> {
    let factor = 10i128.checked_pow(u32::try_from(power.unsigned_abs()).ok()?)?;
    match power < 0 {
        true => reduce(n, d.checked_mul(factor)?),
        false => reduce(n.checked_mul(factor)?, d),
    }
}

fn divide(a: (i128, i128), b: (i128, i128)) -> Option<(i128, i128)> {
    reduce(a.0.checked_mul(b.1)?, a.1.checked_mul(b.0)?)
}

fn reduce(n: i128, d: i128) -> Option<(i128, i128)> {
    let (mut a, mut b) = (n.unsigned_abs(), d.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let divisor = i128::try_from(a).ok().filter(|_| d != 0)?;
    let sign = d.signum();
    Some((n / divisor * sign, d / divisor * sign))
}

#[cfg(test)]
mod tests {
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
        assert!(!check(
            "I stop here, with 204 in the middle and 3 at the end",
            "204"
        ));
    }
}
