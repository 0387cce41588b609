/* Pulled answers, saved sequences, metrics and the log. Started like tests.cpp. */
#include <reasoning_rpc.hpp>

#include "check.hpp"
#include "golden.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace rrpc = reasoning_rpc;
using ids = std::vector<std::uint32_t>;

int main(int argc, char **argv)
try {
    if (argc != 2) return 2; // a folder to write to
    std::atomic<int> reports{0};
    const auto listen = [&reports](std::uint32_t level, std::string_view message) {
        reports += level >= RRPC_LOG_ERROR && level <= RRPC_LOG_DEBUG && !message.empty();
    };
    rrpc::set_log(RRPC_LOG_DEBUG, listen);

    rrpc::engine_options opening;
    opening.threads = 1;
    opening.cache_dtype = RRPC_DTYPE_F32;
    opening.block_entries = 16;
    const rrpc::engine engine(std::getenv("CPP_MODEL"), opening);
    CHECK(reports > 0);
    rrpc::stop_log();
    rrpc::sequence_options options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = golden::P;
    options.window = golden::R;
    options.ratio = golden::c;
    options.kernel = golden::kernel_size;
    options.temperature = 0;
    options.repetition_penalty = 1;
    rrpc::sequence sequence(engine, options);
    sequence.append_tokens(golden::prompt);
    rrpc::generate_options generating;
    generating.max_tokens = golden::rpc.size() / 2;

    // Half of the golden answer, pulled; the sequence moves meanwhile.
    ids pulled;
    std::uint32_t reason = 0;
    {
        rrpc::pulled_answer answer = sequence.answer(generating);
        rrpc::sequence moved = std::move(sequence);
        for (const rrpc::event &event : answer) {
            if (event.kind == RRPC_EVENT_TOKEN) pulled.push_back(event.id);
            if (event.kind == RRPC_EVENT_END) reason = event.stop_reason;
            const auto busy = moved.try_step();
            CHECK(event.kind == RRPC_EVENT_END || (!busy && busy.error().code() == RRPC_ERROR_BUSY));
        }
        sequence = std::move(moved);
    }
    CHECK(reason == RRPC_STOP_LENGTH);
    CHECK(pulled == ids(golden::rpc.begin(), golden::rpc.begin() + std::ptrdiff_t(generating.max_tokens)));
    const auto nothing = sequence.try_next();
    CHECK(!nothing && nothing.error().code() == RRPC_ERROR_INVALID_ARGUMENT);

    // Saved there, restored twice, each writes the other half.
    const std::string path = std::string(argv[1]) + "/sequence";
    sequence.save_file(path);
    std::vector<std::byte> saved = sequence.save();
    generating.max_tokens = golden::rpc.size() - pulled.size();
    ids whole = golden::prompt;
    whole.insert(whole.end(), golden::rpc.begin(), golden::rpc.end());
    sequence.generate(generating);
    rrpc::sequence from_memory = rrpc::sequence::restore(engine, saved), from_file = rrpc::sequence::restore_file(engine, path);
    from_memory.generate(generating);
    from_file.generate(generating);
    CHECK(sequence.tokens() == whole && from_memory.tokens() == whole && from_file.tokens() == whole);
    saved[saved.size() / 2] ^= std::byte{1};
    const auto damaged = rrpc::sequence::try_restore(engine, saved);
    CHECK(!damaged && damaged.error().code() == RRPC_ERROR_STATE);
    const auto no_file = rrpc::sequence::try_restore_file(engine, path + "-not");
    CHECK(!no_file && no_file.error().code() == RRPC_ERROR_FILE);
    // C would cut it to the path that is there.
    const std::string with_nul = path + std::string("\0-not", 5);
    const auto cut_read = rrpc::sequence::try_restore_file(engine, with_nul);
    CHECK(!cut_read && cut_read.error().code() == RRPC_ERROR_INVALID_ARGUMENT);
    const auto cut_write = sequence.try_save_file(with_nul);
    CHECK(!cut_write && cut_write.error().code() == RRPC_ERROR_INVALID_ARGUMENT);

    // Leaving the loop stops the answer.
    rrpc::sequence left(engine, options);
    left.append_tokens(golden::prompt);
    for (const rrpc::event &event : left.answer(generating))
        if (event.kind == RRPC_EVENT_TOKEN) break;
    CHECK(left.tokens().size() == golden::prompt.size() + 1);
    while (left.pending() > 0) left.step();
    CHECK(left.sample() == golden::rpc[1]);

    // An answer that was read to its end leaves the next one alone; so does one that failed.
    generating.max_tokens = 2;
    {
        rrpc::pulled_answer ended = left.answer(generating);
        for (const rrpc::event &event : ended) reason = event.stop_reason;
        CHECK(reason == RRPC_STOP_LENGTH);
        left.append_tokens({1});
        left.start(generating);
        // And reads none of its events.
        try {
            ended.begin();
            CHECK(false);
        } catch (const rrpc::error &error) {
            CHECK(error.code() == RRPC_ERROR_INVALID_ARGUMENT);
        }
    }
    CHECK(left.try_next().has_value());
    left.stop();
    {
        rrpc::pulled_answer failing = left.answer(generating);
        left.stop();
        try {
            failing.begin();
            CHECK(false);
        } catch (const rrpc::error &error) {
            CHECK(error.code() == RRPC_ERROR_INVALID_ARGUMENT);
        }
        left.start(generating);
    }
    CHECK(left.try_next().has_value());
    left.stop();

    const rrpc_metrics metrics = engine.metrics();
    CHECK(metrics.sequences_alive == 4 && metrics.sequences_created == 4 && metrics.decode_tokens > golden::rpc.size());
    CHECK(metrics.compressions > 0 && metrics.budget_used_bytes == engine.info().budget_used_bytes);
    CHECK(engine.metrics_text().find("# TYPE") != std::string::npos);
    CHECK(engine.trim() % 4096 == 0 && engine.trim() == 0);

    std::printf("tests: %d passed, %d failed\n", passed, failed);
    return failed != 0;
} catch (const std::exception &error) {
    std::printf("pulled.cpp: %s\n", error.what());
    return 1;
}
