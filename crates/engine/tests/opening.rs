//! Opening from two threads at once, in processes that have opened nothing before.

use std::process::Command;
use std::sync::Barrier;
use std::thread;

use reasoning_rpc_engine::{Engine, EngineOptions};
use reasoning_rpc_test_support::model;

const CHILD: &str = "RRPC_TEST_OPENING_CHILD";

/// ONNX Runtime's registration of an operator's domain is not safe against itself: without a lock
/// around it, one of the two first sessions of a process failed ("the domain is already exist") in 28
/// of 150 processes on two cores. Twenty of them miss that once in seventy times.
#[test]
fn the_first_engines_of_a_process_open_at_the_same_time() {
    if std::env::var_os(CHILD).is_some() {
        open_two();
        return;
    }
    for _ in 0..20 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_first_engines_of_a_process_open_at_the_same_time"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&child.stderr)
        );
    }
}

fn open_two() {
    let options = EngineOptions::new(model("golden/qwen2_p32-cached"));
    let start = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                start.wait();
                // ONNX Runtime sets the thread that opens a process's first session to flush denormals.
                let half = || std::hint::black_box(f64::MIN_POSITIVE) * std::hint::black_box(0.5);
                Engine::open(&options).unwrap();
                assert!(half() > 0.0, "a host's thread rounds as before");
            });
        }
    });
}
