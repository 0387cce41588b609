//! `reasoning-rpc eval`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use reasoning_rpc_engine::sampling::SamplingOptions;
use reasoning_rpc_engine::{Engine, EngineOptions};
use reasoning_rpc_eval::answers::Answers;
use reasoning_rpc_eval::problems::ProblemSet;
use reasoning_rpc_eval::report::Report;
use reasoning_rpc_eval::run::{self, Contender, Model, Setup, Watch};
use reasoning_rpc_eval::sandbox::{Limits, Sandbox};
use reasoning_rpc_eval::summary;

use crate::args::{Command, Given, Group, Opt, option, usage};
use crate::output::{self, Progress};
use crate::policies::{self, Named};
use crate::{interrupt, model, sampling};

/// The command.
pub const COMMAND: Command = Command {
    name: "eval",
    summary: "Asks models problems under several policies, and compares the answers.",
    usage: &["--model DIR --problems FILE --out DIR [options]"],
    groups: &[
        model::MANY_GROUP,
        Group {
            title: "Problems",
            options: &[
                Opt {
                    many: true,
                    ..option(
                        "problems",
                        "FILE",
                        "JSON lines, as AIME, IFEval, LiveCodeBench and HumanEval are\npublished, or of your own; repeatable",
                    )
                },
                option("limit", "N", "the first N problems of each file [all]"),
                option(
                    "prompt",
                    "HOW",
                    "chat: through the chat template; raw: a text to continue [raw\nfor HumanEval's functions, chat for all else]",
                ),
                option("system", "TEXT", "a system message before each question"),
            ],
        },
        policies::GROUP,
        policies::SHARED_GROUP,
        sampling::GREEDY_GROUP,
        Group {
            title: "Answers",
            options: &[
                option("samples", "N", "answers to each problem [1]"),
                option("max-tokens", "N", "the most tokens of an answer [4096]"),
                option(
                    "seed",
                    "N",
                    "decides the seeds of all answers, the same for every policy\n[0]",
                ),
                option("rows", "N", "answers that are written at once [8]"),
            ],
        },
        Group {
            title: "Programs that answers hold",
            options: &[
                option(
                    "program-seconds",
                    "N",
                    "the most CPU time, and wall-clock time, of one [10]",
                ),
                option(
                    "program-memory",
                    "BYTES",
                    "the most address space of each of its processes [512M]",
                ),
            ],
        },
        Group {
            title: "Output",
            options: &[
                option(
                    "out",
                    "DIR",
                    "answers.jsonl, where finished answers are added; run.jsonl,\nthose of this run; report.json, report.md, report.html",
                ),
                option(
                    "output",
                    "HOW",
                    "what goes to standard output: text (the report in Markdown) or\njson [text]",
                ),
            ],
        },
    ],
    notes: "\
A problem has `prompt` and, to be scored, `answer` (a number or a text) with an optional `checker`:
math (the default: the last \\boxed{}, or what follows \"answer is\", or the last number, in any usual
form), exact, none; or the fields of IFEval (instruction_id_list, kwargs) or HumanEval (entry_point,
test); or `tests`, a list of input and output for a program that reads and prints. Problems whose
tests are not there, as LiveCodeBench's, are answered and not scored.

A run that was broken off, or lacks policies, models, problems or samples, goes on where it was: the
answers in --out that it would write the same way are taken. Ctrl-C ends it with code 130. Programs
run confined (no network, no files of others to write, limits), or not at all.",
    run,
};

fn run(given: &Given) -> anyhow::Result<ExitCode> {
    let json = given.json()?;
    let Some(out) = given.path("out") else {
        return usage("expected --out DIR, found none");
    };
    let models = model::folders(given)?;
    let base = model::options_of(given, &models[0])?;
    let named = policies::parse(given)?;
    let count = |name, default| -> anyhow::Result<usize> { Ok(given.count(name)?.unwrap_or(default)) };
    let limit = count("limit", usize::MAX)?;
    let files = given.paths("problems");
    if files.is_empty() {
        return usage("expected --problems FILE, found none");
    }
    let sampling = sampling::parse_from_greedy(given)?;
    let samples = count("samples", 1)?;
    if samples > 1 && sampling.temperature == 0.0 {
        return usage("--samples: expected 1 at temperature 0, whose answers are all the same, found more");
    }
    let (max_tokens, rows) = (count("max-tokens", 4096)?, count("rows", 8)?);
    let chat = given.choice("prompt", &[("chat", true), ("raw", false)])?;
    let limits = limits(given, &count)?;

    for (index, folder) in models.iter().enumerate() {
        let name = name_of(folder);
        if models[..index].iter().any(|other| name_of(other) == name) {
            return usage(format!(
                "--model: expected folders of different names, found {name:?} twice"
            ));
        }
    }
    let mut sets = Vec::new();
    for file in files {
        let mut set = ProblemSet::read(&file)?;
        set.problems.truncate(limit);
        if sets.iter().any(|other: &ProblemSet| other.name == set.name) {
            return usage(format!(
                "--problems: expected files of different names, found {:?} twice",
                set.name
            ));
        }
        sets.push(set);
    }
    let needs_sandbox = sets
        .iter()
        .any(|set| set.problems.iter().any(|problem| problem.checker.needs_sandbox()));
    let setup = Setup {
        sandbox: needs_sandbox.then(|| Sandbox::new(limits)).transpose()?,
        sets,
        samples,
        sampling,
        max_tokens,
        chat,
        system: given.text("system")?,
        rows,
    };
    let mut problems = setup.sets.iter().flat_map(|set| &set.problems);
    if setup.system.is_some() && !problems.any(|problem| setup.is_chat(problem)) {
        return usage(
            "--system: expected with questions that go through the chat template, found texts to continue",
        );
    }
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let answers = Answers::open(&out.join("answers.jsonl"))?;

    let mut records = Vec::new();
    let mut setup_lines = setup_lines(&setup);
    for folder in &models {
        let name = name_of(folder);
        let screen = Screen::new(&name);
        screen.show("opening the model");
        let engine = Engine::open(&EngineOptions {
            model: folder.clone(),
            ..base.clone()
        })?;
        interrupt::watch();
        let model = Model {
            digest: run::digest(folder)?,
            name,
            engine: &engine,
        };
        setup_lines.push((
            format!("model {}", model.name),
            format!(
                "manifest {}, cache of {}, {}",
                &model.digest[..16],
                engine.cache_type().name(),
                engine.simd().name()
            ),
        ));
        for Named { label, choice } in &named {
            let contender = Contender {
                label: label.clone(),
                policy: choice.of(&engine)?,
                description: choice.describe(),
            };
            let Some(found) = setup.run(&model, &contender, &answers, &screen)? else {
                drop(screen);
                output::note("interrupted: the same command goes on");
                return Ok(ExitCode::from(interrupt::EXIT_CODE));
            };
            records.extend(found);
        }
    }
    for Named { label, choice } in &named {
        setup_lines.push((format!("policy {label}"), choice.describe()));
    }
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        setup: setup_lines,
        rows: summary::rows(&records, policies::FULL),
    };
    let lines: Result<Vec<String>, _> = records.iter().map(serde_json::to_string).collect();
    let lines: String = lines?.into_iter().map(|line| line + "\n").collect();
    let (object, markdown) = (serde_json::to_string_pretty(&report)? + "\n", report.markdown());
    for (file, text) in [
        ("run.jsonl", &lines),
        ("report.json", &object),
        ("report.md", &markdown),
        ("report.html", &report.html()),
    ] {
        let path = out.join(file);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    output::print(if json { &object } else { &markdown })?;
    Ok(ExitCode::SUCCESS)
}

fn limits(
    given: &Given,
    count: &dyn Fn(&'static str, usize) -> anyhow::Result<usize>,
) -> anyhow::Result<Limits> {
    let defaults = Limits::default();
    let time = Duration::from_secs(count("program-seconds", 10)? as u64);
    Ok(Limits {
        wall: time,
        cpu: time,
        memory: given
            .bytes("program-memory")?
            .map_or(defaults.memory, |bytes| bytes as u64),
        ..defaults
    })
}

fn name_of(folder: &Path) -> String {
    let full = folder.canonicalize().unwrap_or_else(|_| PathBuf::from(folder));
    full.file_name()
        .unwrap_or(full.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// What decides the answers, by name.
fn setup_lines(setup: &Setup) -> Vec<(String, String)> {
    let SamplingOptions {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        seed,
    } = setup.sampling;
    let sampling = match temperature == 0.0 {
        true => format!("greedy, repetition penalty {repetition_penalty}"),
        false => format!(
            "temperature {temperature}, top-p {top_p}, top-k {top_k}, min-p {min_p}, repetition penalty {repetition_penalty}"
        ),
    };
    let mut lines: Vec<(String, String)> = setup
        .sets
        .iter()
        .map(|set| {
            let problems = set.problems.len();
            (
                format!("problems {}", set.name),
                format!("{problems}, SHA-256 of the file {}", set.digest),
            )
        })
        .collect();
    let prompts = match setup.chat {
        None => "chat template for questions, raw for texts to continue",
        Some(true) => "chat template",
        Some(false) => "raw",
    };
    lines.extend([
        (
            "sampling".into(),
            format!("{sampling}; seed {seed}, {} samples", setup.samples),
        ),
        ("most tokens of an answer".into(), setup.max_tokens.to_string()),
        ("prompts".into(), prompts.into()),
        ("answers at once".into(), setup.rows.to_string()),
    ]);
    if let Some(system) = &setup.system {
        lines.push(("system message".into(), system.clone()));
    }
    if let Some(sandbox) = &setup.sandbox {
        lines.push(("programs".into(), sandbox.describe()));
    }
    lines
}

/// Progress on a terminal, and Ctrl-C.
struct Screen {
    model: String,
    progress: Mutex<Progress>,
}

impl Screen {
    fn new(model: &str) -> Self {
        Self {
            model: model.into(),
            progress: Mutex::new(Progress::new()),
        }
    }

    fn show(&self, text: &str) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.show(&format!("{}: {text}", self.model));
    }
}

impl Watch for Screen {
    fn progress(&self, policy: &str, done: usize, total: usize) {
        const WIDTH: usize = 30;
        let filled = done * WIDTH / total.max(1);
        let bar = "#".repeat(filled) + &"-".repeat(WIDTH - filled);
        self.show(&format!("{policy} [{bar}] {done}/{total} answers"));
    }

    fn stop(&self) -> bool {
        interrupt::asked()
    }
}
