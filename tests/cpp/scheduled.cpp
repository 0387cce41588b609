/* Schedulers and their answers. Started like tests.cpp. */
#include <reasoning_rpc/scheduler.hpp>

#include "check.hpp"
#include "golden.hpp"

#include <cstdio>
#include <cstdlib>
#include <poll.h>
#include <thread>

namespace rrpc = reasoning_rpc;
using ids = std::vector<std::uint32_t>;
using std::chrono::milliseconds;

static bool readable(int fd, int timeout_ms)
{
    pollfd one{fd, POLLIN, 0};
    return poll(&one, 1, timeout_ms) == 1;
}

int main()
try {
    rrpc::engine_options opening;
    opening.threads = 1;
    opening.cache_dtype = RRPC_DTYPE_F32;
    opening.block_entries = 16;
    const rrpc::engine engine(std::getenv("CPP_MODEL"), opening);
    rrpc::sequence_options options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = golden::P;
    options.window = golden::R;
    options.ratio = golden::c;
    options.kernel = golden::kernel_size;
    options.temperature = 0;
    options.repetition_penalty = 1;
    const auto prompted = [&] {
        rrpc::sequence sequence(engine, options);
        sequence.append_tokens(golden::prompt);
        return sequence;
    };
    rrpc::generate_options generating;
    generating.max_tokens = golden::rpc.size();
    rrpc::scheduler_options chosen;
    CHECK(chosen.max_rows == 32);
    chosen.queue_events = 4;
    rrpc::scheduler scheduler(engine, chosen);

    // The golden answer, many times at once, each read by a thread of its own.
    std::vector<rrpc::sequence> sequences;
    std::vector<std::thread> readers;
    for (int i = 0; i < 6; ++i) sequences.push_back(prompted());
    std::vector<ids> found(sequences.size());
    std::vector<std::uint32_t> reasons(sequences.size());
    for (std::size_t i = 0; i < sequences.size(); ++i)
        readers.emplace_back([&, i] {
            rrpc::scheduled_answer answer = scheduler.submit(sequences[i], generating);
            for (const rrpc::event &event : answer) {
                if (event.kind == RRPC_EVENT_TOKEN) found[i].push_back(event.id);
                reasons[i] = event.stop_reason;
            }
        });
    for (std::thread &reader : readers) reader.join();
    ids whole = golden::prompt;
    whole.insert(whole.end(), golden::rpc.begin(), golden::rpc.end());
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        CHECK(found[i] == golden::rpc && reasons[i] == RRPC_STOP_LENGTH);
        CHECK(sequences[i].tokens() == whole && sequences[i].stats().compressions > 0);
    }
    rrpc_scheduler_metrics metrics = scheduler.metrics();
    CHECK(metrics.completed == sequences.size() && metrics.rows >= metrics.steps && metrics.steps > golden::rpc.size());
    CHECK(scheduler.metrics_text().find("\nreasoning_rpc_scheduler_completed_total 6\n") != std::string::npos);
    sequences.clear();
    CHECK(engine.info().budget_used_bytes == 0);

    // Times out, moves, is waited for by its descriptor, is cancelled.
    rrpc::sequence holder = prompted(), sequence = prompted();
    {
        const rrpc_engine_info info = engine.info();
        rrpc::sequence_options plain(engine);
        plain.policy = RRPC_POLICY_NONE;
        rrpc::sequence all(engine, plain);
        all.append_tokens(golden::prompt);
        all.reserve(info.context - golden::prompt.size());
        rrpc::scheduled_answer waiting = scheduler.submit(sequence, generating);
        rrpc::scheduled_answer answer = std::move(waiting);
        CHECK(waiting.get() == nullptr && answer.get() != nullptr);
        CHECK(answer.next(milliseconds(10)).kind == RRPC_EVENT_NONE && answer.next(milliseconds(-1)).kind == RRPC_EVENT_NONE);
        const int fd = answer.fd();
        CHECK(!readable(fd, 0) && scheduler.metrics().waiting == 1);
        const auto busy = sequence.try_step();
        CHECK(!busy && busy.error().code() == RRPC_ERROR_BUSY);
        all = rrpc::sequence(engine, plain); // its promise ends
        CHECK(readable(fd, 60000));
        rrpc::event event = answer.next(milliseconds(0));
        while (event.kind != RRPC_EVENT_TOKEN) event = answer.next();
        CHECK(event.id == golden::rpc[0]);
        answer.cancel();
        while (event.kind != RRPC_EVENT_END) event = answer.next();
        CHECK(event.stop_reason == RRPC_STOP_CANCELLED && !readable(fd, 0));
        const auto ended = answer.try_next();
        CHECK(!ended && ended.error().code() == RRPC_ERROR_INVALID_ARGUMENT);
        CHECK(sequence.tokens().size() < whole.size()); // it is free
    }

    // Refused: nothing has changed.
    const auto twice = [&] {
        const rrpc::scheduled_answer first = scheduler.submit(holder, generating);
        return scheduler.try_submit(holder, generating);
    }();
    CHECK(!twice && twice.error().code() == RRPC_ERROR_BUSY);
    chosen.max_rows = 0;
    const auto none = rrpc::scheduler::try_create(engine, chosen);
    CHECK(!none && none.error().code() == RRPC_ERROR_INVALID_ARGUMENT);

    // A loop that is left, a scheduler that goes first: everything ends.
    rrpc::sequence left = prompted();
    rrpc::scheduled_answer answer = scheduler.submit(left, generating);
    for (const rrpc::event &event : answer)
        if (event.kind == RRPC_EVENT_TOKEN) break;
    {
        const rrpc::scheduler gone = std::move(scheduler);
        CHECK(scheduler.get() == nullptr);
    }
    std::uint32_t reason = 0;
    std::size_t tokens = 1;
    while (reason == 0) {
        const rrpc::event event = answer.next(milliseconds(60000));
        tokens += event.kind == RRPC_EVENT_TOKEN;
        reason = event.stop_reason;
    }
    CHECK(reason == RRPC_STOP_CANCELLED && left.tokens().size() == golden::prompt.size() + tokens);

    std::printf("tests: %d passed, %d failed\n", passed, failed);
    return failed != 0;
} catch (const std::exception &error) {
    std::printf("scheduled.cpp: %s\n", error.what());
    return 1;
}
