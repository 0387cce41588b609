//! Final answers in mathematical writing: finding the one that a text gives, and comparing two.

/// Whether the final answer of `text` is `expected`.
pub fn check(text: &str, expected: &str) -> bool {
    final_answer(text).is_some_and(|found| same(found, expected))
}

/// The answer that a text ends with: what stands in its last complete `\boxed{}` or `\fbox{}`; without one, what
/// follows the last "answer is", "answer:" or "####": a formula whole, else a tuple or a number on that line; without
/// that, the last number.
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
    enclosed(rest).or_else(|| in_line(rest.lines().next()?))
}

/// The formula that a text begins with. A single dollar sign may be one of money, so that one has to close on its
/// line.
fn enclosed(text: &str) -> Option<&str> {
    let line = text.lines().next()?;
    [
        ("$$", "$$", text),
        ("$", "$", line),
        ("\\(", "\\)", text),
        ("\\[", "\\]", text),
    ]
    .into_iter()
    .find_map(|(open, close, text)| {
        let (inner, after) = text.strip_prefix(open)?.split_once(close)?;
        let inner = inner.trim();
        // Before a digit it is money again ("$25, not $30"), and before "=" not the answer yet.
        let goes_on = after.starts_with(|c: char| c.is_ascii_digit()) || after.trim_start().starts_with('=');
        (!goes_on && !inner.is_empty()).then_some(inner)
    })
}

/// The answer that a line begins with, or that the equation at its beginning ends with.
fn in_line(line: &str) -> Option<&str> {
    // An equation behind one of these explains the answer: "17 because x = 4".
    const CLAUSES: [&str; 10] = [
        "and", "as", "because", "for", "if", "since", "when", "where", "which", "with",
    ];
    let sentence = line.split(". ").next()?;
    let equals = sentence.rfind('=').filter(|&at| {
        let left = &line[..at];
        let aside = left.matches('(').count() > left.matches(')').count()
            || parts(left).iter().skip(1).any(|part| part.starts_with(' '))
            || left
                .split(|c: char| !c.is_ascii_alphabetic())
                .any(|word| CLAUSES.contains(&word));
        !aside
    });
    let part = equals
        .map_or(line, |at| &line[at + 1..])
        .trim_start_matches([' ', '*']);
    let answer = part.trim_end_matches(['.', '*', ' ', '!']);
    enclosed(part)
        .or_else(|| listed(part))
        .or_else(|| number(answer).and(Some(answer)))
        .or_else(|| numbers(part).chain(numbers(line)).next())
        .or((!answer.is_empty()).then_some(answer))
}

/// The tuple, interval or set that a text begins with.
fn listed(text: &str) -> Option<&str> {
    let text = text.strip_prefix("\\left").unwrap_or(text);
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            '\\' => continue,
            _ => {}
        }
        if depth == 0 {
            return text.get(..=at).filter(|whole| tuple(whole).is_some());
        }
    }
    None
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
        let begin = match before.strip_suffix(['.', '-', '\u{2212}', '\u{2013}']) {
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
    let equal = |a: &[String], b: &[String]| a.iter().any(|a| b.iter().any(|b| same_form(a, b)));
    let (a, b) = (forms(found), forms(expected));
    // One side may lack its unit; two sides with different ones are different.
    equal(&a, &b) || equal(without_unit(found).as_slice(), &b) || equal(&a, without_unit(expected).as_slice())
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
    let parts = parts(inner);
    (parts.len() > 1).then_some((open, parts))
}

/// What stands between the commas outside brackets.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// An answer without what does not matter: with the text of `\text{}` and its like as it is, and without it.
fn forms(answer: &str) -> [String; 2] {
    [true, false].map(|keep| compact(&without_marks(&replace_text(answer, keep))))
}

/// The number before a unit that is no `\text`: "12 cm". Without the space it may be a factor: "2x".
fn without_unit(answer: &str) -> Option<String> {
    let text = without_marks(&replace_text(answer, true));
    let text = text.trim_end_matches(|c: char| c.is_whitespace() || ".,;".contains(c));
    let value = text.trim_end_matches(|c: char| c.is_whitespace() || c.is_ascii_alphabetic());
    text[value.len()..]
        .starts_with(char::is_whitespace)
        .then(|| compact(value))
        .filter(|value| number(value).is_some())
}

/// An answer with the text of `\text{}` and its like as it is, or without it and a power of it: "cm^2".
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
                let after = &text[end + content.len() + 2..];
                let after = match after.strip_prefix('^').and_then(argument) {
                    Some((power, after)) if !keep && number(power).is_some() => after,
                    _ => after,
                };
                let whole = at..text.len() - after.len();
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

/// An answer without the signs that only say how it looks; its spaces stay.
fn without_marks(answer: &str) -> String {
    let mut text = answer.to_owned();
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
        ("\\,", "\u{2009}"),
        ("\\;", "\u{2009}"),
        ("\\:", "\u{2009}"),
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
    text
}

/// The value alone, without spaces.
fn compact(text: &str) -> String {
    // Between digits a space is a thousands separator when it is thin or before three digits, and else a gap.
    let mut joined = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if !c.is_whitespace() {
            joined.push(c);
            continue;
        }
        let after = text[at..].trim_start().chars();
        let run = after.take_while(char::is_ascii_digit).count();
        let thin = c == '\u{2009}' || run == 3;
        if run > 0 && !thin && joined.ends_with(|c: char| c.is_ascii_digit()) {
            joined.push(' ');
        }
    }
    let text = joined.trim_end_matches(['.', ',', ';']);
    // `x = 2 + 3 = 5` gives 5, while `x = 1, y = 2` is the answer only as a whole.
    let text = match text.rsplit_once('=') {
        Some((name, value))
            if parts(name).len() == 1 && (parts(value).len() == 1 || number(value).is_some()) =>
        {
            value
        }
        _ => text,
    };
    text.strip_prefix('+').unwrap_or(text).to_owned()
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
mod tests;
