/* Sequences whose callable chooses what stays. */
#include <reasoning_rpc/scheduler.hpp>
#include <reasoning_rpc/select.hpp>

#include "check.hpp"
#include "golden.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace rrpc = reasoning_rpc;
using ids = std::vector<std::uint32_t>;

/* What RRPC_POLICY_RPC keeps with sets per KV head and without pooling. */
static rrpc::kept_candidates like_rpc(const rrpc::selection &seen)
{
    rrpc::kept_candidates kept(seen.kv_heads());
    for (std::uint32_t head = 0; head < seen.kv_heads(); ++head) {
        const rrpc::view<float> scores = seen.scores(head);
        ids order(scores.size());
        std::iota(order.begin(), order.end(), 0U);
        std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
        order.resize(std::min<std::size_t>(order.size(), seen.most() / seen.kv_heads()));
        std::sort(order.begin(), order.end());
        kept[head] = order;
    }
    return kept;
}

static ids written(rrpc::sequence &sequence, std::size_t tokens)
{
    rrpc::generate_options most;
    most.max_tokens = tokens;
    sequence.generate(most);
    return sequence.tokens();
}

/* Counts those that live, copies that were moved from included. */
struct watched {
    std::atomic<int> *calls, *alive;

    watched(std::atomic<int> &of_calls, std::atomic<int> &of_alive) : calls(&of_calls), alive(&of_alive) { ++*alive; }
    watched(watched &&other) noexcept : calls(other.calls), alive(other.alive) { ++*alive; }
    ~watched() { --*alive; }

    rrpc::kept_candidates operator()(const rrpc::selection &seen)
    {
        ++*calls;
        return like_rpc(seen);
    }
};

int main()
{
    rrpc::engine_options opening;
    opening.threads = 1;
    opening.cache_dtype = RRPC_DTYPE_F32;
    opening.block_entries = 16;
    const rrpc::engine engine(std::getenv("CPP_MODEL"), opening);
    rrpc::sequence_options options(engine);
    options.interval = 32;
    options.window = 8;
    options.temperature = 0;
    options.repetition_penalty = 1;

    options.policy = RRPC_POLICY_RPC;
    options.aggregation = RRPC_AGGREGATION_KV_HEAD;
    options.pooling = RRPC_POOLING_NONE;
    rrpc::sequence theirs(engine, options);
    theirs.append_tokens(golden::prompt);
    const ids expected = written(theirs, 200);
    CHECK(theirs.stats().compressions >= 3);
    CHECK(expected != [&] {
        rrpc::sequence_options whole = options;
        whole.policy = RRPC_POLICY_NONE;
        rrpc::sequence plain(engine, whole);
        plain.append_tokens(golden::prompt);
        return written(plain, 200);
    }());

    std::atomic<int> calls{0}, alive{0};
    {
        rrpc::sequence mine = rrpc::selecting(engine, options, watched(calls, alive));
        CHECK(alive == 1);
        mine.append_tokens(golden::prompt);
        written(mine, 50);
        rrpc::sequence fork = mine.fork();
        CHECK(written(mine, 150) == expected);
        CHECK(calls == int(theirs.stats().compressions * engine.info().layers));
        mine = rrpc::sequence(engine, options);
        CHECK(alive == 1);

        // An answer of a scheduler has the fork, and the callable with it.
        rrpc::scheduler scheduler(engine);
        rrpc::generate_options most;
        most.max_tokens = 150;
        rrpc::scheduled_answer answer = scheduler.submit(fork, most);
        fork = rrpc::sequence(engine, options);
        ids found(expected.begin(), expected.end() - 150);
        for (const rrpc::event &event : answer)
            if (event.kind == RRPC_EVENT_TOKEN) found.push_back(event.id);
        CHECK(found == expected);
    }
    CHECK(alive == 0);

    // A sequence that cannot be made leaves nothing behind.
    rrpc::sequence_options impossible = options;
    impossible.window = impossible.interval;
    try {
        rrpc::selecting(engine, impossible, watched(calls, alive));
        CHECK(!"made");
    } catch (const rrpc::error &error) {
        CHECK(error.code() == RRPC_ERROR_INVALID_ARGUMENT);
    }
    CHECK(alive == 0);

    const std::pair<const char *, rrpc::kept_candidates (*)(const rrpc::selection &)> wrong[] = {
        {"throws", [](const rrpc::selection &) -> rrpc::kept_candidates { throw std::runtime_error("unwilling"); }},
        {"no KV head", [](const rrpc::selection &) { return rrpc::kept_candidates(); }},
        {"too many", [](const rrpc::selection &seen) { return rrpc::kept_candidates(seen.kv_heads(), ids(9999)); }},
        {"twice", [](const rrpc::selection &seen) { return rrpc::kept_candidates(seen.kv_heads(), ids{1, 1}); }},
        {"beyond",
         [](const rrpc::selection &seen) {
             return rrpc::kept_candidates(seen.kv_heads(), ids{std::uint32_t(seen.positions(0).size())});
         }},
    };
    for (const auto &[name, choose] : wrong) {
        rrpc::sequence sequence = rrpc::selecting(engine, options, choose);
        sequence.append_tokens(golden::prompt);
        for (const std::int32_t code : {RRPC_ERROR_CALLBACK, RRPC_ERROR_POISONED})
            try {
                written(sequence, 200);
                CHECK(!name);
            } catch (const rrpc::error &error) {
                CHECK(error.code() == code);
            }
    }

    std::printf("tests: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
