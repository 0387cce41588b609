//! What instructions count in a text.

/// Runs of letters, digits and underscores.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty())
}

fn is_word(c: char) -> bool {
    // Vowel signs of Indic scripts are marks, not letters, and belong to their words.
    c.is_alphanumeric() || c == '_' || ('\u{900}'..='\u{dff}').contains(&c) && !"।॥".contains(c)
}

/// Whether a word stands in a text by itself.
pub fn contains_word(text: &str, word: &str) -> bool {
    !word.is_empty()
        && text.match_indices(word).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            let after = text[at + word.len()..].chars().next();
            // Where the word itself ends in another sign, there is no boundary to ask for.
            let inside =
                |edge: Option<char>, c: Option<char>| edge.is_some_and(is_word) && c.is_some_and(is_word);
            !inside(word.chars().next(), before) && !inside(word.chars().next_back(), after)
        })
}

const ABBREVIATIONS: [&str; 26] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "a.m", "p.m", "u.s", "no",
    "inc", "ltd", "co", "corp", "fig", "mt", "gen", "col", "approx", "dept",
];

/// Sentences: what ends with `.`, `!`, `?` or the like before a space or the end, and a last one without. A period
/// behind an abbreviation or an initial ends none, nor do dots, or a number's period, before a small letter.
pub fn sentences(text: &str) -> usize {
    let mut count = 0;
    let mut open = false;
    let mut word_start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c.is_whitespace() {
            word_start = at + c.len_utf8();
            continue;
        }
        open |= c.is_alphanumeric();
        if !".!?…。！？।".contains(c) {
            continue;
        }
        let mut marks = String::from(c);
        while let Some(&(_, next)) = chars.peek() {
            if !".!?…。！？।\"')]}”’*_".contains(next) {
                break;
            }
            marks.push(next);
            chars.next();
        }
        let rest = chars.peek().map_or("", |&(next, _)| &text[next..]);
        let wide = marks.contains(['。', '！', '？', '।']);
        if !(rest.is_empty() || rest.starts_with(char::is_whitespace) || wide) {
            continue;
        }
        let word = text[word_start..at].trim_start_matches(|c: char| !c.is_alphanumeric());
        if open && !(c == '.' && continues(word, &marks, rest)) {
            count += 1;
            open = false;
        }
    }
    count + usize::from(open)
}

/// Whether the sentence goes on behind a word with periods.
fn continues(word: &str, marks: &str, rest: &str) -> bool {
    let next = rest.trim_start().chars().next();
    if next.is_none() || marks.contains(['!', '?']) {
        return false;
    }
    if marks.starts_with("..") {
        return next.is_some_and(char::is_lowercase);
    }
    let lower = word.to_lowercase();
    ABBREVIATIONS.contains(&lower.as_str())
        // An initial, but for the pronoun.
        || (word.chars().count() == 1 && word.chars().all(char::is_uppercase) && word != "I")
        // A number, unless a sentence begins behind it: that of a list's item is one by itself.
        || (!word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) && next.is_some_and(char::is_lowercase))
}

/// Parts between dividers, if none in the middle is empty; empty ones at the start and the end do not count.
pub fn between(text: &str, divider: &str) -> Option<usize> {
    let parts: Vec<&str> = text.split(divider).map(str::trim).collect();
    let last = parts.len() - 1;
    let mut count = parts.len();
    for (index, part) in parts.iter().enumerate() {
        if part.is_empty() {
            if index != 0 && index != last {
                return None;
            }
            count -= 1;
        }
    }
    Some(count)
}

/// Whether there is a postscript with the marker, in any case: `P.S.` and `P.P.S` with a space between their letters
/// or not, and within longer ones; another marker as it stands.
pub fn has_postscript(text: &str, marker: &str) -> bool {
    let text = text.to_lowercase();
    let spaced = |parts: &[&str]| {
        text.match_indices(parts[0]).any(|(at, first)| {
            let rest = parts[1..]
                .iter()
                .try_fold(&text[at + first.len()..], |rest, part| {
                    let gap = rest.strip_prefix(char::is_whitespace).unwrap_or(rest);
                    gap.strip_prefix(part)
                });
            rest.is_some()
        })
    };
    match marker.trim() {
        "P.S." => spaced(&["p.", "s."]),
        "P.P.S" => spaced(&["p.", "p.", "s"]),
        marker => text.contains(&marker.to_lowercase()),
    }
}

/// Texts in a pair of brackets on one line, without the opening one inside.
pub fn enclosed(text: &str, open: &str, close: &str) -> usize {
    let mut count = 0;
    for line in text.lines() {
        let mut rest = line;
        while let Some(start) = rest.find(open) {
            let Some(end) = rest[start..].find(close) else {
                break;
            };
            count += 1;
            rest = &rest[start + end + close.len()..];
        }
    }
    count
}

/// A line such as `* This is a point.` or `- This is a point.`
pub fn is_bullet(line: &str) -> bool {
    let line = line.trim_start();
    match line.strip_prefix('*') {
        Some(rest) => rest.starts_with(|c| c != '*'),
        None => line.starts_with('-'),
    }
}

/// A title in double angular brackets.
pub fn has_title(line: &str) -> bool {
    line.match_indices("<<").any(|(at, _)| {
        let rest = &line[at + 2..];
        rest.match_indices(">>")
            .any(|(end, _)| !rest[..end].trim_matches(['<', '>', ' ', '\t']).is_empty())
    })
}

/// Texts of a line between single asterisks, and those between double ones: each kind is looked for by itself, from
/// the left, so that a text in double ones behind the asterisk of a list's item counts twice.
pub fn highlights(line: &str) -> usize {
    ["*", "**"].map(|mark| between_marks(line, mark)).iter().sum()
}

fn between_marks(line: &str, mark: &str) -> usize {
    let (mut count, mut rest) = (0, line);
    while let Some(start) = rest.find(mark) {
        let inner = &rest[start + mark.len()..];
        let Some(end) = inner.find('*') else {
            break;
        };
        rest = match inner[end..].strip_prefix(mark) {
            Some(behind) => {
                count += usize::from(!inner[..end].trim().is_empty());
                behind
            }
            // What closes nothing may open the next.
            None => &rest[start + 1..],
        };
    }
    count
}

/// Sections that begin with the word and a number, such as `SECTION 1`.
pub fn sections(text: &str, word: &str) -> usize {
    let word = word.trim();
    text.match_indices(word)
        .filter(|(at, _)| {
            let rest = &text[at + word.len()..];
            let rest = rest.trim_start_matches([' ', '\t']);
            rest.starts_with(|c: char| c.is_ascii_digit())
        })
        .count()
}

/// What stands in a markdown fence, if that is all there is.
pub fn without_fence(text: &str) -> &str {
    let Some(rest) = text.strip_prefix("```") else {
        return text;
    };
    let rest = rest.strip_suffix("```").unwrap_or(rest);
    let word = rest
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(rest.len());
    match rest[..word].eq_ignore_ascii_case("json") {
        true => rest[word..].trim(),
        false => rest.trim(),
    }
}

/// Whether there is a letter that is large or small.
pub fn is_cased(text: &str) -> bool {
    text.chars().any(|c| c.is_uppercase() || c.is_lowercase())
}

/// Words in capital letters alone, cut as the Penn Treebank's are: `DON'T` is two, `U.S.` and `TO-DO` one.
pub fn capital_words(text: &str) -> usize {
    const ENDINGS: [&str; 7] = ["N'T", "'S", "'M", "'D", "'LL", "'RE", "'VE"];
    let is_capital =
        |word: &str| word.chars().any(char::is_uppercase) && !word.chars().any(char::is_lowercase);
    text.replace('’', "'")
        .split(|c: char| c.is_whitespace() || "\"“”()[]{}<>!?,;:@#$%&".contains(c))
        .flat_map(|word| word.split("--"))
        .filter(|word| is_capital(word))
        .map(|word| {
            let word = word.trim_end_matches(['.', '\'']);
            let ending = ENDINGS.into_iter().find_map(|ending| word.strip_suffix(ending));
            1 + usize::from(ending.is_some_and(is_capital))
        })
        .sum()
}
