//! include/reasoning_rpc.h is what the sources say: cbindgen writes a section from each module, and
//! this file puts them together. `UPDATE_HEADER=1 cargo test -p reasoning-rpc-capi --test header`
//! writes the header; without the variable the test compares.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The sections, from simple to advanced: title, introduction, modules.
const SECTIONS: &[(&str, &str, &str)] = &[
    ("Versions", "", "version"),
    ("Errors", "Codes are only ever added.", "error"),
    ("Engines", "An engine is an open model.", "engine"),
    (
        "Sequences",
        "A sequence is a text: given parts, generated parts, and their cache. It can be continued for as\n\
         long as the context has room: append, generate, append the next turn, generate.",
        "policy select sequence_options sequence",
    ),
    ("A whole answer", "", "generate"),
    (
        "Many answers at once",
        "A scheduler runs the answers of one engine together: each step of the model runs a row of every answer\n\
         that can go on, which takes less time than a step for each. Answers join and leave between steps. Each\n\
         is the one that rrpc_generate writes.\n\
         \n\
         Answers are admitted in the order in which they are submitted, each as soon as its whole cache can be\n\
         promised: one that has begun is not broken off for want of budget, and none overtakes. Prompts are run\n\
         in parts, beside the answers that generate. Compressions run on a thread of their own. What is written\n\
         waits in a queue for each answer, and when that is full this answer alone waits for its reader. An\n\
         error ends the answer that it belongs to.\n\
         \n\
         submit sequences; for each answer: rrpc_answer_next until RRPC_EVENT_END, waiting there, or in the\n\
         program's own event loop for what rrpc_answer_fd gives; rrpc_answer_free.",
        "scheduler",
    ),
    ("Their events", "", "answer"),
    (
        "Step by step",
        "For programs that have a loop of their own, or advance many sequences together:\n\
         \n\
         append text; while tokens are pending: rrpc_step; then until the answer ends: read the logits,\n\
         rrpc_sequence_sample (or rrpc_sequence_accept a token of one's own), rrpc_step.",
        "step",
    ),
    (
        "Forks, rewinds, the cache",
        "Several answers to one text, or several ways to go on with an answer: append the text, run it,\n\
         then fork as often as answers are wanted, give each fork a seed of its own, and step them together.\n\
         Forks share what they have in common. To try again from an earlier place, rewind.",
        "cache",
    ),
    ("What compressions did", "", "compression"),
    (
        "Saved sequences",
        "A saved sequence is read by engines of the same model and cache_dtype. It ends with a hash, which\n\
         tells damage, not forgery; but no bytes make the library crash.",
        "state",
    ),
    ("Figures and planning", "", "stats"),
    ("Metrics", "", "metrics"),
    ("Logging", "", "log"),
    ("Tokens and text", "", "text"),
    (
        "Compressors",
        "For hosts that run the model themselves and own its cache: serving systems, other runtimes. A\n\
         compressor needs no engine. It works on the host's memory, dense or paged, where it lies:\n\
         \n\
         when rrpc_compressor_due says so, for each layer: rrpc_compressor_compress; or, to look or to\n\
         interfere between them: rrpc_compressor_score, rrpc_compressor_select, rrpc_compressor_apply.\n\
         After the last layer, the host takes over the plan's lengths and blocks.\n\
         \n\
         score, select, apply, compress, record and forget allocate nothing (but the text of an error) and\n\
         wait for nothing. Any number of calls may use one compressor at the same time, each with its own\n\
         workspace, sequences and blocks.",
        "compressor_options",
    ),
    ("The host's cache", "", "kv"),
    ("Compressions of the host's cache", "", "plan compressor"),
    (
        "Tensors of other libraries",
        "DLPack, as PyTorch, JAX, NumPy and others export it, for compressors.",
        "tensor",
    ),
];

/// A constant that cbindgen cannot write: `usize::MAX`.
const NUL_TERMINATED: &str = "/** In the place of a text's length: the text ends at its NUL. */
#define RRPC_NUL_TERMINATED SIZE_MAX
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn header_path() -> PathBuf {
    root().join("../../include/reasoning_rpc.h")
}

fn section(modules: &str) -> String {
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        no_includes: true,
        usize_is_size_t: true,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        style: cbindgen::Style::Both,
        sort_by: cbindgen::SortKey::None,
        line_length: 104,
        tab_width: 4,
        ..cbindgen::Config::default()
    };
    config.function.sort_by = Some(cbindgen::SortKey::None);
    config.function.must_use = Some("RRPC_NODISCARD".into());
    config.function.args = cbindgen::Layout::Auto;
    // Structs that no function of their own section takes.
    config.export.include = ["rrpc_text", "rrpc_kv_layer", "rrpc_kv_batch", "rrpc_query_window"]
        .map(String::from)
        .to_vec();
    let mut out = Vec::new();
    let builder = cbindgen::Builder::new().with_config(config);
    let add = |builder: cbindgen::Builder, module| builder.with_src(root().join(format!("src/{module}.rs")));
    modules
        .split(' ')
        .fold(builder, add)
        .generate()
        .unwrap()
        .write(&mut out);
    tidy(&String::from_utf8(out).unwrap())
}

/// Rust's view taken out: safety sections (the opening comment and the parameters' text say it), and
/// `struct` before names that have a typedef. One-line comments get one line.
fn tidy(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut in_safety = false;
    for line in text.lines() {
        let words = line.trim();
        if words == "* # Safety" {
            in_safety = true;
        }
        if in_safety {
            in_safety = words != "*";
            continue;
        }
        let line = match line.starts_with("typedef struct") {
            true => line.to_string(),
            false => line.replace("struct rrpc_", "rrpc_"),
        };
        if words == "*/"
            && let [.., before, comment] = &lines[..]
            && before.trim() == "/**"
        {
            let comment = comment.trim_start().trim_start_matches('*').trim();
            let short = format!("{} {comment} */", before.trim_end());
            if short.len() <= 108 {
                lines.truncate(lines.len() - 2);
                lines.push(short);
                continue;
            }
        }
        lines.push(line);
    }
    grouped(&lines).join("\n").trim().to_string()
}

/// Without the blank lines between constants that have their first words in common, and none after another.
fn grouped(lines: &[String]) -> Vec<String> {
    let family = |line: &String| -> Option<String> {
        let name = line.strip_prefix("#define ")?.split(' ').next()?;
        Some(name.splitn(3, '_').take(2).collect::<Vec<_>>().join("_"))
    };
    let mut kept: Vec<String> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let before = kept.last().and_then(family);
        let after = lines.get(index + 2).and_then(family);
        let one_line = lines.get(index + 1).is_some_and(|next| next.starts_with("/** "));
        let again = kept.last().is_some_and(String::is_empty);
        let in_family = one_line && before.is_some() && before == after;
        if line.is_empty() && (again || in_family) {
            continue;
        }
        kept.push(line.clone());
    }
    kept
}

fn header() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let opening = fs::read_to_string(root().join("header/opening.h")).unwrap();
    let mut text = format!(
        "{opening}
#ifndef REASONING_RPC_H
#define REASONING_RPC_H

#include <stddef.h>
#include <stdint.h>

/** Version of this header as text. */
#define RRPC_VERSION \"{version}\"

/** On functions whose result must be looked at. */
#if defined(__GNUC__)
#define RRPC_NODISCARD __attribute__((__warn_unused_result__))
#else
#define RRPC_NODISCARD
#endif

#ifdef __cplusplus
extern \"C\" {{
#endif
"
    );
    for &(title, introduction, modules) in SECTIONS {
        text.push_str(&format!("\n/*\n * ==== {title} ====\n"));
        if !introduction.is_empty() {
            text.push_str(" *\n");
            for line in introduction.lines() {
                text.push_str(format!(" * {line}").trim_end());
                text.push('\n');
            }
        }
        text.push_str(" */\n\n");
        if title == "Sequences" {
            text.push_str(NUL_TERMINATED);
            text.push('\n');
        }
        text.push_str(&section(modules));
        text.push('\n');
    }
    text.push_str("\n#ifdef __cplusplus\n}\n#endif\n\n#endif\n");
    text
}

/// The functions that a header declares, with the comment before each.
fn functions(header: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for block in header.split("/**").skip(1) {
        let Some((comment, rest)) = block.split_once("*/") else {
            continue;
        };
        let declaration: String = rest.split(';').next().unwrap_or("").into();
        let is_function =
            declaration.contains('(') && !declaration.contains("typedef") && !declaration.contains('#');
        if is_function {
            let name = declaration
                .split('(')
                .next()
                .unwrap()
                .rsplit([' ', '*', '\n'])
                .next()
                .unwrap();
            found.push((name.to_string(), comment.to_string()));
        }
    }
    found
}

#[test]
fn header_is_current() {
    let generated = header();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(header_path(), &generated).unwrap();
    }
    let committed = fs::read_to_string(header_path()).unwrap_or_default();
    assert!(
        generated == committed,
        "include/reasoning_rpc.h is not what the sources say: UPDATE_HEADER=1 cargo test -p reasoning-rpc-capi --test header"
    );
}

#[test]
fn every_function_says_who_owns_who_calls_what_fails_and_since_when() {
    let header = header();
    for (name, comment) in functions(&header) {
        let mut rest = comment.as_str();
        for label in ["* Ownership: ", "* Threads: ", "* Errors: ", "* Since: "] {
            let at = rest
                .find(label)
                .unwrap_or_else(|| panic!("{name}: no line `{label}` in its place"));
            rest = &rest[at + label.len()..];
        }
    }
}

#[test]
fn the_header_declares_what_the_sources_export() {
    let mut exported = BTreeSet::new();
    for file in fs::read_dir(root().join("src")).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        for part in source.split("extern \"C\" fn rrpc_").skip(1) {
            exported.insert(format!("rrpc_{}", part.split('(').next().unwrap()));
        }
    }
    let declared: BTreeSet<String> = functions(&header()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(declared, exported);
    assert!(declared.len() >= 30, "found only {}", declared.len());
}

#[test]
fn the_constant_written_by_hand_is_the_sources() {
    assert_eq!(reasoning_rpc::RRPC_NUL_TERMINATED, usize::MAX);
    let source = fs::read_to_string(root().join("src/sequence.rs")).unwrap();
    assert!(source.contains("/// In the place of a text's length: the text ends at its NUL.\n"));
    assert!(
        !section("sequence").contains("#define RRPC_NUL_TERMINATED"),
        "cbindgen writes it now"
    );
}
