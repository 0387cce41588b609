/*
 * reasoning_rpc.hpp: reasoning_rpc.h for C++17 and later. Header only; a program links libreasoning_rpc.
 *
 * A first program, in full. It answers a question with an exported model:
 *
 *     #include <reasoning_rpc.hpp>
 *     #include <iostream>
 *
 *     int main(int argc, char **argv)
 *     try {
 *         if (argc != 3) {
 *             std::cerr << "usage: " << argv[0] << " MODEL_FOLDER QUESTION\n";
 *             return 2;
 *         }
 *         reasoning_rpc::engine engine(argv[1]);
 *         reasoning_rpc::sequence sequence(engine);
 *         sequence.append_chat({{"user", argv[2]}});
 *         sequence.generate([](const reasoning_rpc::event &event) { std::cout << event.text << std::flush; });
 *         return 0;
 *     } catch (const std::exception &error) {
 *         std::cerr << error.what() << '\n';
 *         return 1;
 *     }
 *
 *     c++ -std=c++17 first.cpp $(pkg-config --cflags --libs reasoning_rpc) -o first && ./first MODEL_FOLDER QUESTION
 *
 * What reasoning_rpc.h says of options, numbers, text, processes and each function holds here; constants
 * (RRPC_POLICY_, RRPC_EVENT_, RRPC_STOP_, RRPC_ERROR_ ...) and output structs are the C header's. Beyond it:
 *
 * Errors. Every function that is not noexcept throws `error` where its C function returns one, and
 * std::bad_alloc. What is left behind is what the C function leaves. Functions named try_ return an `expected`
 * in place of throwing `error`. With -fno-exceptions all compiles, and what would throw ends the program: use
 * the functions named try_, for answers try_start and try_next.
 *
 * Ownership. `engine` and `sequence` are move-only and free their handle when they are destroyed. A
 * sequence keeps what it needs of its engine alive, so that the two may be destroyed in any order. One
 * that was moved from holds NULL: it may be destroyed, assigned to and asked for get(); every other call
 * throws RRPC_ERROR_NULL_POINTER. Texts, tokens and messages that are passed in are read during the call
 * only. What is returned is the caller's, but for logits().
 *
 * Threads. As in C: an engine may be used by any number of threads at the same time, a sequence by one
 * call at a time; a second one throws RRPC_ERROR_BUSY. Answers of many sequences are written together by a
 * scheduler: reasoning_rpc/scheduler.hpp. A callable that chooses what a cache keeps: reasoning_rpc/select.hpp. Moving, assigning and destroying an object is for
 * one thread, while no other uses the object.
 */

#ifndef REASONING_RPC_HPP
#define REASONING_RPC_HPP

#include <reasoning_rpc.h>
#include <reasoning_rpc/engine.hpp>
#include <reasoning_rpc/expected.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace reasoning_rpc {

/* ==== Sequences ==== */

/** rrpc_sequence_options with its defaults, the sampling ones of the engine's model. */
struct sequence_options : rrpc_sequence_options {
    explicit sequence_options(const engine &of) : rrpc_sequence_options{}
    {
        detail::check(rrpc_sequence_options_init(of.get(), this, sizeof(rrpc_sequence_options)));
    }
};

/** The policy that a name selects, such as "rpc" or "lookahead". Throws INVALID_ARGUMENT for another name. */
inline std::uint32_t policy_from_name(const std::string &name)
{
    if (detail::has_nul(name))
        detail::raise(RRPC_ERROR_INVALID_ARGUMENT, "name: expected a policy's name, found a NUL character in it");
    std::uint32_t policy = 0;
    detail::check(rrpc_policy_from_name(name.c_str(), &policy));
    return policy;
}

inline cache_peak engine::peak_cache_bytes(const sequence_options &options, std::uint64_t prompt_tokens,
                                           std::uint64_t new_tokens) const
{
    cache_peak peak{};
    detail::check(rrpc_peak_cache_bytes(get(), &options, prompt_tokens, new_tokens, &peak.entries, &peak.bytes));
    return peak;
}

/** One message of a conversation. */
struct message {
    /** "system", "user", "assistant", "tool" or "developer". */
    std::string_view role;
    /** What was said. What spells a control token in it does not become one. */
    std::string_view content;
};

/** rrpc_generate_options with its defaults. */
struct generate_options : rrpc_generate_options {
    generate_options() : rrpc_generate_options{}
    {
        detail::check(rrpc_generate_options_init(this, sizeof(rrpc_generate_options)));
    }
    /** Texts that end the answer. If there are any, they take the place of `stop` and `stop_count`. */
    std::vector<std::string> stop_strings;
};

/** What sequence::generate tells its callable, and other ways to write an answer their readers. Fields that an event does not name are 0. */
struct event {
    /** RRPC_EVENT_PREFILL, RRPC_EVENT_TOKEN or RRPC_EVENT_END; others may come with later versions. */
    std::uint32_t kind;
    /** TOKEN: its id. */
    std::uint32_t id;
    /**
     * TOKEN and END: text that became complete, in whole characters; may be empty. Valid until the
     * callable returns. Its data() is NUL-terminated.
     */
    std::string_view text;
    /** TOKEN: it is one of the model's stop tokens, which ends the answer or is passed over. */
    bool end_of_text;
    /** END: why, one of RRPC_STOP_. */
    std::uint32_t stop_reason;
    /** PREFILL: tokens of the given text run by this call. */
    std::uint64_t prefill_done;
    /** PREFILL: tokens of the given text that this call has to run. */
    std::uint64_t prefill_total;
};

namespace detail {

inline event event_of(const rrpc_event &from)
{
    return {from.kind, from.token, std::string_view(from.text, from.text_len), from.end_of_text != 0,
            from.stop_reason, from.prefill_done, from.prefill_total};
}

/* The options of C, and what their stop strings lie in. */
struct plain_options {
    rrpc_generate_options options;
    std::vector<rrpc_text> texts;

    explicit plain_options(const generate_options &from) : options(from)
    {
        if (from.stop_strings.empty()) return;
        texts.reserve(from.stop_strings.size());
        for (const std::string &text : from.stop_strings) texts.push_back({text.data(), text.size()});
        options.stop = texts.data();
        options.stop_count = texts.size();
    }
    plain_options(const plain_options &) = delete;
    plain_options &operator=(const plain_options &) = delete;
};

/* Over the events of an answer that is read one by one: `from->event_`, and `from->pull()` for the next. */
template <class Answer>
class event_iterator {
public:
    using iterator_category = std::input_iterator_tag;
    using value_type = event;
    using difference_type = std::ptrdiff_t;
    using pointer = const event *;
    using reference = const event &;

    event_iterator() noexcept = default;
    explicit event_iterator(Answer *from) noexcept : from_(from) {}
    reference operator*() const noexcept { return from_->event_; }
    pointer operator->() const noexcept { return &from_->event_; }
    event_iterator &operator++()
    {
        if (from_->event_.kind == RRPC_EVENT_END) from_ = nullptr;
        else from_->pull();
        return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const event_iterator &a, const event_iterator &b) noexcept { return a.from_ == b.from_; }
    friend bool operator!=(const event_iterator &a, const event_iterator &b) noexcept { return a.from_ != b.from_; }

private:
    Answer *from_ = nullptr;
};

} // namespace detail

/**
 * An answer that its reader pulls: `for (const event &e : sequence.answer(options))`. Each step of the loop
 * writes one token; END is the last event. Destroying this, as leaving the loop early does, stops an answer
 * that has not ended; its text so far stays in the sequence. The sequence may be moved meanwhile; other calls
 * on it that are not const throw RRPC_ERROR_BUSY. An event's text is valid until the next one is asked for.
 */
class pulled_answer {
public:
    using iterator = detail::event_iterator<pulled_answer>;

    /** Asks for the first event; for one loop. */
    iterator begin()
    {
        pull();
        return iterator(this);
    }
    iterator end() const noexcept { return iterator(); }

    pulled_answer(const pulled_answer &) = delete;
    pulled_answer &operator=(const pulled_answer &) = delete;
    ~pulled_answer()
    {
        if (sequence_ != nullptr) rrpc_error_free(rrpc_generate_stop(sequence_));
    }

private:
    friend class sequence;
    friend iterator;
    pulled_answer(rrpc_sequence *sequence, const generate_options &options) : sequence_(sequence)
    {
        const detail::plain_options plain(options);
        detail::check(rrpc_generate_start(sequence_, &plain.options));
    }
    void pull()
    {
        if (sequence_ == nullptr)
            detail::raise(RRPC_ERROR_INVALID_ARGUMENT, "answer: expected one under way, found one that has ended");
        rrpc_event from{};
        from.struct_size = sizeof from;
        rrpc_error *const found = rrpc_generate_next(sequence_, &from);
        // Of the errors that it can give here, all but BUSY end the answer, or find that it has ended.
        const bool ended = found == nullptr ? from.kind == RRPC_EVENT_END : rrpc_error_code(found) != RRPC_ERROR_BUSY;
        if (ended) sequence_ = nullptr;
        detail::check(found);
        event_ = detail::event_of(from);
    }

    rrpc_sequence *sequence_; // NULL once the answer has ended: the next one is not this object's to stop
    event event_{};
};

/** The cache of one layer and KV head, in place; see rrpc_cache_view. */
struct cache_view : rrpc_cache_view {
    /** Entry `entry`'s key: head_dim elements of `dtype`. */
    const void *key(std::uint64_t entry) const noexcept { return at(keys, entry, entry_stride); }
    /** Its value. */
    const void *value(std::uint64_t entry) const noexcept { return at(values, entry, entry_stride); }
    /** Its position in the text. */
    std::uint32_t position(std::uint64_t entry) const noexcept
    {
        return *static_cast<const std::uint32_t *>(at(positions, entry, sizeof(std::uint32_t)));
    }
    /** What its key's elements are multiplied with: 1 but for RRPC_DTYPE_I8. */
    float key_scale(std::uint64_t entry) const noexcept { return scale(key_scales, entry); }
    /** The same of its value. */
    float value_scale(std::uint64_t entry) const noexcept { return scale(value_scales, entry); }

private:
    float scale(const float *scales, std::uint64_t entry) const noexcept
    {
        return scales == nullptr ? 1.0F : *static_cast<const float *>(at(scales, entry, sizeof(float)));
    }
    const void *at(const void *base, std::uint64_t entry, std::uint64_t stride) const noexcept
    {
        return static_cast<const char *>(base) + block_table[entry / block_entries] * block_stride +
               entry % block_entries * stride;
    }
};

/** How an answer ended. */
struct generate_result {
    /** Tokens generated by the call, a stop token included. */
    std::uint64_t tokens;
    /** Why it ended, one of RRPC_STOP_. */
    std::uint32_t stop_reason;
};

/** What one compression did to one layer. */
struct compression : rrpc_compression {
    /**
     * The original text positions of the kept candidates, one set for the layer or for each KV head. Empty
     * unless they were asked for and the sequence records them (sequence_options::record_kept).
     */
    std::vector<std::vector<std::uint32_t>> kept;
};

namespace detail {

/* Stands between the C callback and a callable, whose exceptions go no further. */
template <class Callable>
struct listener {
    Callable *callable;
    std::exception_ptr thrown;

    static std::int32_t hear(const rrpc_event *from, void *user_data) noexcept
    {
        listener &self = *static_cast<listener *>(user_data);
        if (self.thrown) return 1; // the end of the answer that an exception cancelled
#if defined(__cpp_exceptions)
        try {
            return self.tell(*from);
        } catch (...) {
            self.thrown = std::current_exception();
            return 1;
        }
#else
        return self.tell(*from);
#endif
    }

    std::int32_t tell(const rrpc_event &from)
    {
        const event told = event_of(from);
        if constexpr (std::is_void_v<std::invoke_result_t<Callable &, const event &>>) {
            (*callable)(told);
            return 0;
        } else {
            return (*callable)(told) ? 0 : 1;
        }
    }
};

} // namespace detail

/** A text under generation: tokens, cache, compression policy and sampler. */
class sequence {
public:
    /** An empty sequence with the default options. */
    explicit sequence(const engine &of) : sequence(of, sequence_options(of)) {}
    /** An empty sequence. */
    sequence(const engine &of, const sequence_options &options)
    {
        rrpc_sequence *created = nullptr;
        detail::check(rrpc_sequence_create(of.get(), &options, &created));
        handle_.reset(created);
    }

    static expected<sequence> try_create(const engine &of, const rrpc_sequence_options &options)
    {
        rrpc_sequence *created = nullptr;
        return made(rrpc_sequence_create(of.get(), &options, &created), created);
    }

    /** Restores what save or save_file wrote, for an engine of the same model. */
    static sequence restore(const engine &of, view<std::byte> data) { return try_restore(of, data).value(); }
    static expected<sequence> try_restore(const engine &of, view<std::byte> data)
    {
        rrpc_sequence *restored = nullptr;
        const std::byte none{};
        const void *from = data.empty() ? &none : data.data();
        return made(rrpc_sequence_restore(of.get(), from, data.size(), &restored), restored);
    }
    static sequence restore_file(const engine &of, const std::string &path) { return try_restore_file(of, path).value(); }
    static expected<sequence> try_restore_file(const engine &of, const std::string &path)
    {
        if (detail::has_nul(path))
            return failure(RRPC_ERROR_INVALID_ARGUMENT, "path: expected a path, found a NUL character in it");
        rrpc_sequence *restored = nullptr;
        return made(rrpc_sequence_restore_file(of.get(), path.c_str(), &restored), restored);
    }

    /** A second sequence that goes on exactly as this one would; its cache is shared, copy on write. */
    sequence fork() const { return try_fork().value(); }
    expected<sequence> try_fork() const
    {
        rrpc_sequence *forked = nullptr;
        return made(rrpc_sequence_fork(get(), &forked), forked);
    }

    /** Takes over a handle from C. */
    static sequence adopt(rrpc_sequence *handle) noexcept { return sequence(handle); }
    /** The handle, for calls in C. It stays this object's. */
    rrpc_sequence *get() const noexcept { return handle_.get(); }
    /** Gives the handle away; the caller frees it. */
    rrpc_sequence *release() noexcept { return handle_.release(); }

    /** Appends raw text, in which control tokens are parsed. */
    void append_text(std::string_view text)
    {
        detail::check(rrpc_sequence_append_text(get(), text.empty() ? "" : text.data(), text.size()));
    }

    /** Appends messages in the words of the model's chat template, up to where the answer begins. */
    void append_chat(view<message> messages)
    {
        std::vector<rrpc_message> plain;
        plain.reserve(messages.size() + 1);
        for (const message &one : messages)
            plain.push_back({{one.role.data(), one.role.size()}, {one.content.data(), one.content.size()}});
        detail::check(rrpc_sequence_append_chat(get(), plain.data(), plain.size()));
    }
    void append_chat(std::initializer_list<message> messages)
    {
        append_chat(view<message>(messages.begin(), messages.size()));
    }

    /** Appends token ids as given text. */
    void append_tokens(view<std::uint32_t> tokens)
    {
        const std::uint32_t none = 0;
        detail::check(rrpc_sequence_append_tokens(get(), tokens.empty() ? &none : tokens.data(), tokens.size()));
    }
    void append_tokens(std::initializer_list<std::uint32_t> tokens)
    {
        append_tokens(view<std::uint32_t>(tokens.begin(), tokens.size()));
    }

    /** Promises the cache for `new_tokens` more tokens, so that no step on the way fails for want of budget. */
    void reserve(std::size_t new_tokens) { detail::check(rrpc_sequence_reserve(get(), new_tokens)); }

    /**
     * Writes an answer. `callable` is called in this thread with a `const event &` for each event, and
     * returns nothing, or a bool: false cancels the answer before its next token. It may use the library, but
     * for this sequence, which is busy. An exception that it throws cancels the answer, is the last call
     * of it, and is thrown on by generate once the sequence is well again: the answer so far stays in it.
     */
    template <class Callable, class = std::enable_if_t<std::is_invocable_v<Callable &, const event &>>>
    generate_result generate(const generate_options &options, Callable &&callable)
    {
        using plain = std::remove_reference_t<Callable>;
        using returned = std::invoke_result_t<plain &, const event &>;
        static_assert(std::is_void_v<returned> || std::is_same_v<returned, bool>,
                      "the callable returns void, or bool: true goes on, false cancels");
        detail::listener<plain> listener{std::addressof(callable), nullptr};
        rrpc_error *found = nullptr;
        const generate_result result = run(options, detail::listener<plain>::hear, &listener, found);
        if (listener.thrown) {
            rrpc_error_free(found);
            std::rethrow_exception(std::move(listener.thrown));
        }
        detail::check(found);
        return result;
    }
    template <class Callable, class = std::enable_if_t<std::is_invocable_v<Callable &, const event &>>>
    generate_result generate(Callable &&callable)
    {
        return generate(generate_options(), std::forward<Callable>(callable));
    }
    /** Writes an answer that nobody listens to; tokens() has it. */
    generate_result generate(const generate_options &options = generate_options())
    {
        rrpc_error *found = nullptr;
        const generate_result result = run(options, nullptr, nullptr, found);
        detail::check(found);
        return result;
    }

    /** Starts an answer whose events are pulled; see pulled_answer. */
    pulled_answer answer(const generate_options &options = generate_options()) { return pulled_answer(get(), options); }

    /** Starts one without a range: `next` gives its events, RRPC_EVENT_END last, and `stop` ends it early. */
    void start(const generate_options &options = generate_options()) { try_start(options).value(); }
    expected<void> try_start(const generate_options &options = generate_options())
    {
        const detail::plain_options plain(options);
        return expected<void>(rrpc_generate_start(get(), &plain.options));
    }
    /** The next event; END is the last one. Its text is valid until the next call that is not const. */
    event next() { return try_next().value(); }
    expected<event> try_next()
    {
        rrpc_event from{};
        from.struct_size = sizeof from;
        if (rrpc_error *found = rrpc_generate_next(get(), &from)) return failure(found);
        return detail::event_of(from);
    }
    /** Ends the answer under way, if there is one. */
    void stop() { try_stop().value(); }
    expected<void> try_stop() { return expected<void>(rrpc_generate_stop(get())); }

    /** The seed of the tokens drawn from now on: for forks that are to differ. */
    void set_seed(std::uint64_t seed) { detail::check(rrpc_sequence_set_seed(get(), seed)); }

    /** Shortens the text to its first `tokens` tokens, not to before the last compression. */
    void rewind(std::size_t tokens) { try_rewind(tokens).value(); }
    expected<void> try_rewind(std::size_t tokens) { return expected<void>(rrpc_sequence_rewind(get(), tokens)); }

    /** The whole state, for restore. */
    std::vector<std::byte> save() const
    {
        return detail::copied<std::vector<std::byte>>([this](auto... out) {
            return rrpc_sequence_save(get(), out...);
        });
    }
    /** The same in a file, which is replaced at once or not at all. */
    void save_file(const std::string &path) const { try_save_file(path).value(); }
    expected<void> try_save_file(const std::string &path) const
    {
        if (detail::has_nul(path))
            return failure(RRPC_ERROR_INVALID_ARGUMENT, "path: expected a path, found a NUL character in it");
        return expected<void>(rrpc_sequence_save_file(get(), path.c_str()));
    }

    /** A layer and KV head's cache in place. Valid as long as logits() are. */
    cache_view cache(std::uint32_t layer, std::uint32_t kv_head) const &
    {
        cache_view view{};
        view.struct_size = sizeof(rrpc_cache_view);
        detail::check(rrpc_sequence_cache_view(get(), layer, kv_head, &view));
        return view;
    }
    cache_view cache(std::uint32_t layer, std::uint32_t kv_head) const && = delete;

    expected<void> try_append_text(std::string_view text)
    {
        return expected<void>(rrpc_sequence_append_text(get(), text.empty() ? "" : text.data(), text.size()));
    }
    expected<void> try_append_tokens(view<std::uint32_t> tokens)
    {
        const std::uint32_t none = 0;
        return expected<void>(
            rrpc_sequence_append_tokens(get(), tokens.empty() ? &none : tokens.data(), tokens.size()));
    }
    expected<void> try_reserve(std::size_t new_tokens)
    {
        return expected<void>(rrpc_sequence_reserve(get(), new_tokens));
    }
    expected<void> try_step()
    {
        rrpc_sequence *const alone = get();
        return expected<void>(rrpc_step(&alone, 1));
    }

    /** Runs one step of the model for this sequence alone; see reasoning_rpc::step. */
    void step()
    {
        rrpc_sequence *const alone = get();
        detail::check(rrpc_step(&alone, 1));
    }

    /** How many tokens no step has run yet. While there are any, there are no logits. */
    std::size_t pending() const
    {
        std::size_t pending = 0;
        detail::check(rrpc_sequence_pending(get(), &pending));
        return pending;
    }

    /**
     * The logits after the last token, one for each token of the vocabulary; empty while tokens are
     * pending. They are the sequence's: valid until it is destroyed or assigned to, or the next call on
     * it that is not const (step, generate, sample, accept, append_*, reserve). Moving the sequence
     * leaves them valid.
     */
    view<float> logits() const &
    {
        const float *logits = nullptr;
        std::size_t count = 0;
        detail::check(rrpc_sequence_logits(get(), &logits, &count));
        return {logits, count};
    }
    view<float> logits() const && = delete;

    /** Draws the next token from the logits, appends it and returns its id. */
    std::uint32_t sample()
    {
        std::uint32_t token = 0;
        detail::check(rrpc_sequence_sample(get(), &token));
        return token;
    }

    /** Appends a token of the caller's choice in place of a sampled one. */
    void accept(std::uint32_t token) { detail::check(rrpc_sequence_accept(get(), token)); }

    /** All tokens, given and generated, the pending ones included. */
    std::vector<std::uint32_t> tokens() const
    {
        return detail::copied<std::vector<std::uint32_t>>([this](auto... out) {
            return rrpc_sequence_tokens(get(), out...);
        });
    }

    /** The log of compressions: one entry for each compression and layer. `kept`: with their kept sets. */
    std::vector<compression> compressions(bool kept = false) const
    {
        std::size_t count = 0;
        detail::check(rrpc_sequence_compression_count(get(), &count));
        std::vector<compression> log(count);
        for (std::size_t index = 0; index < count; ++index) {
            compression &one = log[index];
            one.struct_size = sizeof(rrpc_compression);
            detail::check(rrpc_sequence_get_compression(get(), index, &one));
            for (std::size_t set = 0; kept && set < one.kept_sets; ++set)
                one.kept.push_back(detail::copied<std::vector<std::uint32_t>>([&](auto... out) {
                    return rrpc_sequence_compression_kept(get(), index, set, out...);
                }));
        }
        return log;
    }

    /** Figures: tokens, times, bytes of the cache. */
    rrpc_sequence_stats stats() const
    {
        rrpc_sequence_stats stats{};
        stats.struct_size = sizeof stats;
        detail::check(rrpc_sequence_get_stats(get(), &stats));
        return stats;
    }

private:
    /* By reference: an argument may be read before the call that sets it. */
    static expected<sequence> made(rrpc_error *found, rrpc_sequence *const &handle)
    {
        if (found != nullptr) return failure(found);
        return adopt(handle);
    }

    explicit sequence(rrpc_sequence *handle) noexcept : handle_(handle) {}

    generate_result run(const generate_options &options, rrpc_event_callback callback, void *user_data,
                        rrpc_error *&found)
    {
        const detail::plain_options plain(options);
        rrpc_generate_result result{};
        result.struct_size = sizeof result;
        found = rrpc_generate(get(), &plain.options, callback, user_data, &result);
        return {result.tokens, result.stop_reason};
    }

    std::unique_ptr<rrpc_sequence, detail::deleter> handle_;
};

/* ==== Step by step ==== */

namespace detail {

inline rrpc_sequence *handle_of(sequence &item) noexcept { return item.get(); }
template <class Pointer>
auto handle_of(const Pointer &item) -> decltype(handle_of(*item))
{
    return item ? handle_of(*item) : nullptr;
}

template <class Iterator, class End>
void step(Iterator first, End last)
{
    std::vector<rrpc_sequence *> handles;
    for (; first != last; ++first) handles.push_back(handle_of(*first));
    rrpc_sequence *none = nullptr;
    check(rrpc_step(handles.empty() ? &none : handles.data(), handles.size()));
}

} // namespace detail

/**
 * Runs one step of the model for sequences of one engine, in any mixture, as rrpc_step: from `first` to
 * before `last`, whose items are sequences or pointers to them, smart ones included. Two addresses are no
 * such range: `step(&a, &b)` does not compile, `step({&a, &b})` does what it says.
 */
template <class Iterator, class = std::enable_if_t<!std::is_convertible_v<Iterator, const sequence *>>>
void step(Iterator first, Iterator last)
{
    detail::step(first, last);
}

/** The same for `{&a, &b}`. */
inline void step(std::initializer_list<sequence *> sequences) { detail::step(sequences.begin(), sequences.end()); }

/** The same for a container, an array or a C++20 range. */
template <class Range>
auto step(Range &&sequences) -> decltype(std::begin(sequences), void())
{
    detail::step(std::begin(sequences), std::end(sequences));
}

/* ==== The log ==== */

/**
 * Tells `callable(level, message)` what the library reports, up to `level`, one of RRPC_LOG_: a std::uint32_t
 * and a std::string_view that is valid during the call. It is called from any thread, several at once.
 *
 * Only its address is kept: it must live until set_log or stop_log has returned after the next change, and must
 * not throw: an exception ends the program. It must not call set_log or stop_log, which throw RRPC_ERROR_BUSY
 * there.
 */
template <class Callable>
void set_log(std::uint32_t level, Callable &callable)
{
    const auto told = [](std::uint32_t at, const char *message, std::size_t size, void *user_data) noexcept {
        (*static_cast<Callable *>(user_data))(at, std::string_view(message, size));
    };
    const void *address = std::addressof(callable); // whose const `told` puts back
    detail::check(rrpc_set_log(level, told, const_cast<void *>(address)));
}
template <class Callable>
void set_log(std::uint32_t level, const Callable &&callable) = delete;

/** Silence again; on return no call of the callable is running. */
inline void stop_log() { detail::check(rrpc_set_log(RRPC_LOG_OFF, nullptr, nullptr)); }

} // namespace reasoning_rpc

#endif
