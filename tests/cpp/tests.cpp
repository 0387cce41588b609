/* The C++ header, used as programs use it. Started by tests/cpp/run, which names the models. */
#include <reasoning_rpc.hpp>

#include "golden.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <string>
#include <thread>
#if __cplusplus >= 202002L
#include <span>
#endif

namespace rrpc = reasoning_rpc;
using ids = std::vector<std::uint32_t>;

/* second.cpp */
rrpc::generate_result answer(rrpc::sequence &sequence, std::uint64_t max_tokens);

static int failures_in_test, passed, failed;

static bool check_that(bool condition, const char *what, int line)
{
    if (!condition) {
        std::printf("tests.cpp:%d: %s\n", line, what);
        ++failures_in_test;
    }
    return condition;
}

#define CHECK(...) check_that((__VA_ARGS__), #__VA_ARGS__, __LINE__)

/* The call throws rrpc::error with the code and these words in its message. */
template <class Call>
static void check_throws(std::int32_t code, const char *words, Call &&call, int line)
{
    try {
        call();
    } catch (const rrpc::error &error) {
        if (error.code() == code && std::string(error.what()).find(words) != std::string::npos) return;
        std::printf("tests.cpp:%d: expected code %d with \"%s\", found %d: %s\n", line, int(code), words,
                    int(error.code()), error.what());
        ++failures_in_test;
        return;
    }
    check_that(false, "an error is thrown", line);
}

#define THROWS(code, words, ...) check_throws(RRPC_ERROR_##code, words, [&] { __VA_ARGS__; }, __LINE__)

static void run(const char *name, void (*test)())
{
    failures_in_test = 0;
    try {
        test();
    } catch (const std::exception &error) {
        check_that(false, error.what(), 0);
    }
    if (failures_in_test) std::printf("failed: %s\n", name);
    ++(failures_in_test ? failed : passed);
}

#define RUN(test) run(#test, test)

static const char *environment(const char *name)
{
    const char *value = std::getenv(name);
    if (value != nullptr) return value;
    std::printf("%s is not set: start the tests with tests/cpp/run\n", name);
    std::exit(2);
}

enum { VOCABULARY = 96, CONTEXT = 4096, LAYERS = 3, STOP = 93 };

static rrpc::engine open(const char *model)
{
    rrpc::engine_options options;
    options.threads = 1;
    options.cache_dtype = RRPC_DTYPE_F32;
    options.block_entries = 16;
    return rrpc::engine(model, options);
}

static rrpc::engine open() { return open(environment("CPP_MODEL")); }

/* Greedy, without compression. */
static rrpc::sequence_options plain(const rrpc::engine &engine)
{
    rrpc::sequence_options options(engine);
    options.policy = RRPC_POLICY_NONE;
    options.temperature = 0;
    options.repetition_penalty = 1;
    return options;
}

/* Greedy, compressed as the golden generation was. */
static rrpc::sequence_options compressed(const rrpc::engine &engine)
{
    rrpc::sequence_options options = plain(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = golden::P;
    options.window = golden::R;
    options.ratio = golden::c;
    options.kernel = golden::kernel_size;
    options.record_kept = 1;
    return options;
}

static rrpc::sequence prompted(const rrpc::engine &engine)
{
    rrpc::sequence sequence(engine, plain(engine));
    sequence.append_tokens(golden::prompt);
    return sequence;
}

static rrpc::generate_options at_most(std::uint64_t max_tokens)
{
    rrpc::generate_options options;
    options.max_tokens = max_tokens;
    return options;
}

static ids first(const ids &all, std::size_t count) { return ids(all.begin(), all.begin() + std::ptrdiff_t(count)); }

static ids written(const rrpc::sequence &sequence)
{
    const ids all = sequence.tokens();
    CHECK(all.size() >= golden::prompt.size() && first(all, golden::prompt.size()) == golden::prompt);
    return ids(all.begin() + std::ptrdiff_t(golden::prompt.size()), all.end());
}

static void the_types_say_what_they_are()
{
    static_assert(std::is_nothrow_move_constructible_v<rrpc::engine> && !std::is_copy_constructible_v<rrpc::engine>);
    static_assert(std::is_nothrow_move_assignable_v<rrpc::engine> && !std::is_copy_assignable_v<rrpc::engine>);
    static_assert(std::is_nothrow_move_constructible_v<rrpc::sequence> && !std::is_copy_constructible_v<rrpc::sequence>);
    static_assert(std::is_nothrow_move_assignable_v<rrpc::sequence> && !std::is_copy_assignable_v<rrpc::sequence>);
    static_assert(sizeof(rrpc::sequence) == sizeof(void *) && sizeof(rrpc::engine) == sizeof(void *));
    static_assert(std::is_base_of_v<std::runtime_error, rrpc::error>);
    static_assert(std::is_nothrow_copy_constructible_v<rrpc::error>);
    static_assert(!std::is_convertible_v<std::vector<int>, rrpc::view<std::uint32_t>>);
    static_assert(!std::is_convertible_v<rrpc::engine, rrpc::sequence>);
    CHECK(rrpc_abi_version() == RRPC_ABI_VERSION);
}

static void options_have_the_defaults_of_c()
{
    const rrpc::engine_options opening;
    CHECK(opening.struct_size == sizeof(rrpc_engine_options) && opening.onnxruntime == nullptr);
    CHECK(opening.budget_bytes == RRPC_BUDGET_DEFAULT && opening.threads == RRPC_THREADS_ONE_PER_CORE);
    CHECK(opening.block_entries == 64 && opening.prefill_chunk == 256 && opening.verify_weights == 1 &&
          opening.map_weights == 0);
    const rrpc::engine engine = open();
    const rrpc::sequence_options options(engine);
    CHECK(options.struct_size == sizeof(rrpc_sequence_options) && options.policy == RRPC_POLICY_LOOKAHEAD_MERGE);
    CHECK(options.interval == 4096 && options.window == 32 && options.ratio == 4 && options.kernel == 7);
    CHECK(options.temperature > 0.59F && options.temperature < 0.61F);
    const rrpc::generate_options generating;
    CHECK(generating.struct_size == sizeof(rrpc_generate_options));
    CHECK(generating.max_tokens == RRPC_TO_END_OF_CONTEXT && generating.stop_strings.empty());
    CHECK(generating.stop == nullptr && generating.stop_count == 0 && generating.ignore_eos == 0);
}

static void engines_and_sequences_move()
{
    rrpc::engine one = open();
    rrpc_engine *const handle = one.get();
    rrpc::engine two(std::move(one));
    CHECK(two.get() == handle && one.get() == nullptr);
    THROWS(NULL_POINTER, "", one.info());
    THROWS(NULL_POINTER, "", rrpc::sequence{one});
    rrpc::engine other = open();
    two = std::move(other); // frees the first one
    rrpc_engine_info info{};
    info.struct_size = sizeof info;
    rrpc_error *gone = rrpc_engine_get_info(handle, &info);
    CHECK(rrpc_error_code(gone) == RRPC_ERROR_INVALID_HANDLE);
    rrpc_error_free(gone);
    rrpc::engine &same = two;
    two = std::move(same);

    std::vector<rrpc::sequence> sequences;
    for (int i = 0; i < 20; ++i) sequences.push_back(prompted(two)); // moves when it grows
    rrpc::sequence taken = std::move(sequences[3]);
    THROWS(NULL_POINTER, "", sequences[3].generate());
    THROWS(NULL_POINTER, "", sequences[3].step());
    THROWS(NULL_POINTER, "", (void)sequences[3].pending());
    THROWS(NULL_POINTER, "", sequences[3].append_tokens({1}));
    std::swap(taken, sequences[4]);
    sequences.erase(sequences.begin(), sequences.begin() + 10);
    answer(taken, 3);
    CHECK(written(taken) == first(golden::full, 3));
    // Moving leaves logits where they are.
    taken.step();
    const rrpc::view<float> logits = taken.logits();
    const rrpc::sequence kept = std::move(taken);
    CHECK(kept.logits().data() == logits.data() && logits.size() == VOCABULARY);
    CHECK(logits.end() == std::max_element(logits.begin(), logits.end()) - golden::full[3] + VOCABULARY);
}

static void freeing_twice_does_nothing()
{
    rrpc::engine engine = open();
    {
        rrpc::sequence sequence = prompted(engine);
        rrpc_sequence_free(sequence.get());
        THROWS(INVALID_HANDLE, "", sequence.generate());
        const rrpc::sequence twice = rrpc::sequence::adopt(sequence.get());
    }
    // The handle of a freed sequence is not used again.
    rrpc::sequence stale = prompted(engine);
    const rrpc::sequence alias = rrpc::sequence::adopt(stale.get());
    stale = prompted(engine);
    CHECK(stale.pending() == golden::prompt.size());
    THROWS(INVALID_HANDLE, "", (void)alias.pending());
    {
        rrpc::engine twice = rrpc::engine::adopt(engine.get());
        rrpc_engine_free(twice.get());
    }
    THROWS(INVALID_HANDLE, "", engine.info());
    // The sequence keeps the model.
    answer(stale, 4);
    CHECK(written(stale) == first(golden::full, 4));
    // Handed to C and back.
    rrpc_sequence *const raw = stale.release();
    CHECK(stale.get() == nullptr && raw != nullptr);
    const rrpc::sequence back = rrpc::sequence::adopt(raw);
    CHECK(back.tokens().size() == golden::prompt.size() + 4);
}

static void errors_carry_code_and_message()
{
    THROWS(MODEL, "/nowhere/at/all", rrpc::engine("/nowhere/at/all"));
    THROWS(INVALID_ARGUMENT, "NUL", rrpc::engine(std::string_view("/no\0where", 9)));
    rrpc::engine_options options;
    options.threads = 0;
    THROWS(INVALID_ARGUMENT, "threads", rrpc::engine(environment("CPP_MODEL"), options));
    const rrpc::engine engine = open();
    rrpc::sequence_options refused = plain(engine);
    refused.policy = 99;
    THROWS(INVALID_ARGUMENT, "expected one of 0, 1, ", rrpc::sequence(engine, refused));
    rrpc::sequence sequence(engine, plain(engine));
    THROWS(INVALID_ARGUMENT, "found a NUL", sequence.save_file(std::string("/nowhere\0else", 13)));
    THROWS(INVALID_ARGUMENT, "found a NUL", rrpc::sequence::restore_file(engine, std::string("/nowhere\0else", 13)));
    CHECK(rrpc::policy_from_name("rpc") == RRPC_POLICY_RPC);
    THROWS(INVALID_ARGUMENT, "found a NUL", rrpc::policy_from_name(std::string("rpc\0x", 5)));
    THROWS(INVALID_ARGUMENT, "", sequence.generate());
    THROWS(INVALID_ARGUMENT, "", sequence.step());
    THROWS(INVALID_ARGUMENT, "", sequence.sample());
    THROWS(INVALID_ARGUMENT, "expected 0 to 95, found 96", sequence.append_tokens({1, 96}));
    THROWS(CONTEXT, "4097", sequence.append_tokens(ids(CONTEXT + 1)));
    THROWS(CONTEXT, "", sequence.reserve(CONTEXT + 1));
    THROWS(TEXT, "tokenizer", sequence.append_text("a"));
    THROWS(TEXT, "tokenizer", engine.tokenize("a"));
    THROWS(TEXT, "tokenizer", sequence.append_chat({{"user", "hi"}, {"assistant", "ho"}}));
    CHECK(sequence.tokens().empty() && sequence.pending() == 0 && sequence.logits().empty());
    // As any other exception.
    try {
        sequence.accept(1);
        CHECK(false);
    } catch (const std::exception &error) {
        CHECK(error.what()[0] != '\0');
    }
    options = rrpc::engine_options();
    options.cache_dtype = RRPC_DTYPE_F32;
    options.block_entries = 16;
    options.budget_bytes = 32 * 792; // 32 tokens
    const rrpc::engine small(environment("CPP_MODEL"), options);
    sequence = prompted(small);
    THROWS(BUDGET, "bytes available", sequence.generate(at_most(22)));
    THROWS(BUDGET, "bytes available", sequence.reserve(22));
    CHECK(answer(sequence, 21).tokens == 21);
}

static void events_come_in_order()
{
    rrpc::engine_options options;
    options.cache_dtype = RRPC_DTYPE_F32;
    options.prefill_chunk = 5;
    const rrpc::engine engine(environment("CPP_MODEL"), options);
    rrpc::sequence sequence = prompted(engine);
    unsigned prefills = 0, ends = 0;
    ids seen;
    const rrpc::generate_result result = sequence.generate(at_most(16), [&](const rrpc::event &event) {
        CHECK(ends == 0 && event.text.data()[event.text.size()] == '\0');
        switch (event.kind) {
        case RRPC_EVENT_PREFILL:
            ++prefills;
            CHECK(seen.empty() && event.prefill_total == 12 && event.prefill_done == std::min(5 * prefills, 12U));
            break;
        case RRPC_EVENT_TOKEN:
            CHECK(!event.end_of_text);
            seen.push_back(event.id);
            break;
        case RRPC_EVENT_END:
            ++ends;
            CHECK(event.stop_reason == RRPC_STOP_LENGTH);
            break;
        default: CHECK(false);
        }
    });
    CHECK(prefills == 3 && ends == 1 && seen == first(golden::full, 16));
    CHECK(result.tokens == 16 && result.stop_reason == RRPC_STOP_LENGTH);
}

static int events_of_function;
static bool on_event(const rrpc::event &event)
{
    ++events_of_function;
    return event.kind != RRPC_EVENT_TOKEN;
}

static void a_callable_cancels_by_false()
{
    const rrpc::engine engine = open();
    for (std::size_t at = 1; at <= 3; ++at) {
        rrpc::sequence sequence = prompted(engine);
        std::size_t tokens = 0, ends = 0;
        const auto count = [&](const rrpc::event &event) -> bool {
            if (event.kind == RRPC_EVENT_TOKEN) return ++tokens < at;
            if (event.kind == RRPC_EVENT_END) {
                ++ends;
                CHECK(event.stop_reason == RRPC_STOP_CANCELLED);
                return false; // means nothing any more
            }
            return true;
        };
        const rrpc::generate_result result = sequence.generate(count);
        CHECK(result.tokens == at && result.stop_reason == RRPC_STOP_CANCELLED);
        CHECK(tokens == at && ends == 1 && written(sequence) == first(golden::full, at));
        // It goes on from there.
        answer(sequence, 2);
        CHECK(written(sequence) == first(golden::full, at + 2));
    }
    rrpc::sequence sequence = prompted(engine);
    CHECK(sequence.generate(on_event).tokens == 1 && events_of_function == 3); // prefill, token, end
    CHECK(sequence.generate(at_most(1), &on_event).tokens == 1);
    // A callable that changes, and cannot be copied.
    struct counter {
        int tokens = 0;
        counter() = default;
        counter(const counter &) = delete;
        void operator()(const rrpc::event &event) { tokens += event.kind == RRPC_EVENT_TOKEN; }
    } counter;
    sequence.generate(at_most(2), counter);
    CHECK(counter.tokens == 2);
}

static void exceptions_of_a_callable_arrive()
{
    struct planted {
        std::string words;
    };
    const rrpc::engine engine = open();
    rrpc::sequence sequence = prompted(engine);
    int calls = 0;
    for (const std::uint32_t kind : ids{RRPC_EVENT_PREFILL, RRPC_EVENT_TOKEN, RRPC_EVENT_END}) {
        rrpc::sequence one = prompted(engine);
        bool caught = false;
        int after = 0;
        try {
            one.generate(at_most(4), [&](const rrpc::event &event) {
                if (caught) ++after;
                if (event.kind != kind) return;
                caught = true;
                throw planted{"from the callable, longer than a small string"};
            });
            CHECK(false);
        } catch (const planted &found) {
            CHECK(found.words == "from the callable, longer than a small string");
        }
        CHECK(caught && after == 0);
        // The sequence is well and goes on.
        const std::size_t so_far = kind == RRPC_EVENT_PREFILL ? 0 : kind == RRPC_EVENT_TOKEN ? 1 : 4;
        CHECK(written(one) == first(golden::full, so_far));
        answer(one, 3);
        CHECK(written(one) == first(golden::full, so_far + 3));
    }
    // The sequence is busy; its error comes through the callable.
    THROWS(BUSY, "", sequence.generate([&](const rrpc::event &) {
        ++calls;
        (void)sequence.pending();
    }));
    CHECK(calls == 1);
    // Another sequence is not.
    rrpc::sequence other = prompted(engine);
    sequence.generate(at_most(4), [&](const rrpc::event &event) {
        if (event.kind == RRPC_EVENT_TOKEN) answer(other, 1);
    });
    CHECK(written(sequence) == first(golden::full, 4) && written(other) == written(sequence));
    // A callable that frees its own sequence and throws.
    auto last = std::make_unique<rrpc::sequence>(prompted(engine));
    rrpc::sequence &at_work = *last;
    try {
        at_work.generate(at_most(2), [&](const rrpc::event &) {
            last.reset();
            throw planted{"free"};
        });
        CHECK(false);
    } catch (const planted &) {
    }
    CHECK(engine.info().vocab == VOCABULARY);
}

static void check_compressions(const rrpc::sequence &sequence)
{
    const std::vector<rrpc::compression> log = sequence.compressions(true);
    if (!CHECK(log.size() == golden::compressions.size())) return;
    for (std::size_t i = 0; i < log.size(); ++i) {
        const golden::record &expected = golden::compressions[i];
        CHECK(log[i].layer == expected.layer && log[i].at_token == (i / LAYERS + 1) * golden::P + golden::R);
        CHECK(log[i].len_before == expected.before && log[i].len_after == expected.after);
        CHECK(log[i].kept_sets == 1 && log[i].kept == expected.kept);
    }
    for (const rrpc::compression &one : sequence.compressions()) CHECK(one.kept.empty() && one.kept_sets == 1);
    CHECK(sequence.stats().compressions * LAYERS == log.size());
}

static void golden_answers_in_one_call()
{
    const rrpc::engine engine = open();
    rrpc::sequence sequence(engine, compressed(engine));
    sequence.append_tokens(golden::prompt);
    const std::size_t count = golden::rpc.size();
    const rrpc::cache_peak peak = engine.peak_cache_bytes(compressed(engine), golden::prompt.size(), count);
    ids seen;
    sequence.generate(at_most(count), [&](const rrpc::event &event) {
        if (event.kind == RRPC_EVENT_TOKEN) seen.push_back(event.id);
    });
    CHECK(count == 300 && seen == golden::rpc && seen != golden::full && written(sequence) == golden::rpc);
    check_compressions(sequence);
    const rrpc_sequence_stats stats = sequence.stats();
    CHECK(stats.prefill_tokens == golden::prompt.size() && stats.decode_tokens == count - 1);
    CHECK(stats.cache_peak_bytes == peak.bytes && peak.bytes < stats.cache_uncompressed_bytes);
    CHECK(peak.entries >= golden::prompt.size() + golden::P);
}

static std::uint32_t best(rrpc::view<float> logits)
{
    return std::uint32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

static void golden_answers_step_by_step()
{
    const rrpc::engine engine = open();
    rrpc::sequence sequence(engine, compressed(engine)), whole = prompted(engine);
    sequence.append_tokens(golden::prompt);
    sequence.reserve(golden::rpc.size());
    for (std::size_t i = 0; i < golden::rpc.size(); ++i) {
        CHECK(sequence.pending() == (i ? 1 : golden::prompt.size()) && sequence.logits().empty());
        rrpc::step({&sequence, &whole});
        CHECK(sequence.pending() == 0 && sequence.logits().size() == VOCABULARY);
        CHECK(best(sequence.logits()) == golden::rpc[i] && best(whole.logits()) == golden::full[i]);
        CHECK(sequence.sample() == golden::rpc[i]);
        whole.accept(golden::full[i]);
    }
    CHECK(written(sequence) == golden::rpc && written(whole) == golden::full && whole.compressions().empty());
    check_compressions(sequence);
}

static void steps_take_any_range()
{
    const rrpc::engine engine = open(), other = open();
    std::list<rrpc::sequence> list;
    std::vector<std::unique_ptr<rrpc::sequence>> owned;
    std::array<rrpc::sequence, 2> array{prompted(engine), prompted(engine)};
    for (int i = 0; i < 3; ++i) {
        list.push_back(prompted(engine));
        owned.push_back(std::make_unique<rrpc::sequence>(prompted(engine)));
    }
    std::vector<rrpc::sequence *> all{&array[0], &array[1]};
    for (rrpc::sequence &one : list) all.push_back(&one);
    for (const auto &one : owned) all.push_back(one.get());
    rrpc::step(list.begin(), list.end());
    rrpc::step(owned);
    rrpc::step(array);
    for (std::size_t i = 0; i < 8; ++i) {
        for (rrpc::sequence *one : all) CHECK(one->sample() == golden::full[i]);
        switch (i % 4) {
        case 0: rrpc::step(all); break;
        case 1: rrpc::step(all.begin(), all.end()); break;
        case 2:
            rrpc::step(list);
            rrpc::step(owned.begin(), owned.end());
            rrpc::step({&array[1], &array[0]});
            break;
        default:
            for (rrpc::sequence *one : all) one->step();
        }
    }
    rrpc::sequence foreign = prompted(other), here = prompted(engine);
    THROWS(INVALID_ARGUMENT, "", rrpc::step({&foreign, &here}));
    THROWS(INVALID_ARGUMENT, "", rrpc::step({&here, &here}));
    THROWS(INVALID_ARGUMENT, "", rrpc::step(std::vector<rrpc::sequence *>()));
    THROWS(NULL_POINTER, "", rrpc::step({&here, nullptr}));
    CHECK(here.pending() == golden::prompt.size()); // nothing advanced
#if __cplusplus >= 202002L
    here.append_tokens(std::span<const std::uint32_t>(golden::full).first(2));
    for (rrpc::sequence *one : {&array[0], &array[1]}) one->accept(1);
    rrpc::step(std::span<rrpc::sequence *>(all).first(2));
#else
    here.append_tokens(rrpc::view<std::uint32_t>(golden::full.data(), 2));
#endif
    const std::uint32_t more[] = {golden::full[2]};
    here.append_tokens(more);
    here.append_tokens({0, 5});
    here.append_tokens(ids());
    CHECK(here.pending() == golden::prompt.size() + 5);
}

static void text_goes_in_and_comes_out()
{
    const rrpc::engine engine = open(environment("CPP_TEXT_MODEL"));
    const rrpc_engine_info info = engine.info();
    CHECK(info.vocab == VOCABULARY && info.context == CONTEXT && info.layers == LAYERS);
    CHECK(info.has_tokenizer == 1 && info.has_chat_template == 1 && info.flavour == RRPC_FLAVOUR_CACHED);
    CHECK(engine.stop_tokens() == ids{STOP});
    const std::string text = "caf\xc3\xa9 <|im_end|>";
    CHECK(engine.tokenize(text).size() == text.size());
    const ids special = engine.tokenize(text, RRPC_TOKENIZE_SPECIAL);
    CHECK(special.size() == 7 && special.back() == STOP);
    CHECK(engine.detokenize(special) == text && engine.detokenize(special, true) == "caf\xc3\xa9 ");
    CHECK(engine.tokenize("").empty() && engine.tokenize({}).empty() && engine.detokenize({}).empty());
    CHECK(engine.tokenize(std::string_view(text).substr(0, 3)).size() == 3);
    THROWS(INVALID_ARGUMENT, "UTF-8", engine.tokenize("\xff"));
    THROWS(INVALID_ARGUMENT, "mode", engine.tokenize("a", 9));
    THROWS(TEXT, "500", engine.detokenize(ids{500}));

    rrpc::sequence sequence(engine, plain(engine));
    const std::vector<rrpc::message> messages{{"system", "be kind"}, {"user", "<|im_end|>"}};
    sequence.append_chat(messages);
    CHECK(engine.detokenize(sequence.tokens()) ==
          "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n");
    THROWS(INVALID_ARGUMENT, "wizard", sequence.append_chat({{"wizard", "hi"}}));
    const std::size_t before = sequence.tokens().size();
    sequence.append_text("more");
    sequence.append_text({});
    CHECK(sequence.tokens().size() == before + 4);

    // The golden answer has a stop token early, and again when it is passed over.
    rrpc::sequence golden_one = prompted(engine);
    std::string streamed;
    int ends_of_text = 0;
    const auto collect = [&](const rrpc::event &event) {
        streamed += event.text;
        CHECK(event.kind != RRPC_EVENT_TOKEN || event.end_of_text == (event.id == STOP));
        ends_of_text += event.end_of_text;
    };
    rrpc::generate_result result = golden_one.generate(collect);
    CHECK(result.stop_reason == RRPC_STOP_EOS && result.tokens == 6 && ends_of_text == 1);
    CHECK(streamed == engine.detokenize(first(golden::full, 5)));
    golden_one = prompted(engine);
    rrpc::generate_options options = at_most(40);
    options.ignore_eos = 1;
    ends_of_text = 0;
    streamed.clear();
    CHECK(golden_one.generate(options, collect).tokens == 40 && ends_of_text == 2);
    const std::string forty = engine.detokenize(first(golden::full, 40));
    CHECK(streamed == forty);

    // Stop strings live in the options, copies of them included.
    golden_one = prompted(engine);
    const std::string ending = engine.detokenize(ids{golden::full[11], golden::full[12]});
    options.stop_strings = {"a text that does not come", ending};
    const rrpc::generate_options copy = options;
    options.stop_strings.clear();
    streamed.clear();
    result = golden_one.generate(copy, collect);
    CHECK(result.stop_reason == RRPC_STOP_STRING && streamed == forty.substr(0, forty.find(ending)));
    CHECK(!streamed.empty());
    options.stop_strings = {""};
    THROWS(INVALID_ARGUMENT, "stop", golden_one.generate(options));
}

static void threads_share_an_engine()
{
    const rrpc::engine engine = open();
    std::array<ids, 4> found;
    std::vector<std::thread> threads;
    for (ids &one : found)
        threads.emplace_back([&engine, &one] {
            rrpc::sequence sequence = prompted(engine);
            answer(sequence, 64);
            one = written(sequence);
        });
    for (std::thread &thread : threads) thread.join();
    for (const ids &one : found) CHECK(one == first(golden::full, 64));
}

int main()
{
    std::setvbuf(stdout, nullptr, _IONBF, 0);
    RUN(the_types_say_what_they_are);
    RUN(options_have_the_defaults_of_c);
    RUN(engines_and_sequences_move);
    RUN(freeing_twice_does_nothing);
    RUN(errors_carry_code_and_message);
    RUN(events_come_in_order);
    RUN(a_callable_cancels_by_false);
    RUN(exceptions_of_a_callable_arrive);
    RUN(golden_answers_in_one_call);
    RUN(golden_answers_step_by_step);
    RUN(steps_take_any_range);
    RUN(text_goes_in_and_comes_out);
    RUN(threads_share_an_engine);
    std::printf("tests: %d passed, %d failed\n", passed, failed);
    return failed != 0;
}
