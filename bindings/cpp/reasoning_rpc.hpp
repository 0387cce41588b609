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
 * std::bad_alloc. What is left behind is what the C function leaves.
 *
 * Ownership. `engine` and `sequence` are move-only and free their handle when they are destroyed. A
 * sequence keeps what it needs of its engine alive, so that the two may be destroyed in any order. One
 * that was moved from holds NULL: it may be destroyed, assigned to and asked for get(); every other call
 * throws RRPC_ERROR_NULL_POINTER. Texts, tokens and messages that are passed in are read during the call
 * only. What is returned is the caller's, but for logits().
 *
 * Threads. As in C: an engine may be used by any number of threads at the same time, a sequence by one
 * call at a time; a second one throws RRPC_ERROR_BUSY. Moving, assigning and destroying an object is for
 * one thread, while no other uses the object.
 */

#ifndef REASONING_RPC_HPP
#define REASONING_RPC_HPP

#include <reasoning_rpc.h>

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

/* ==== Errors ==== */

/** What went wrong: code() is one of RRPC_ERROR_, what() the message. */
class error : public std::runtime_error {
public:
    error(std::int32_t code, const char *message) : std::runtime_error(message), code_(code) {}
    std::int32_t code() const noexcept { return code_; }

private:
    std::int32_t code_;
};

namespace detail {

struct deleter {
    void operator()(rrpc_error *error) const noexcept { rrpc_error_free(error); }
    void operator()(rrpc_engine *engine) const noexcept { rrpc_engine_free(engine); }
    void operator()(rrpc_sequence *sequence) const noexcept { rrpc_sequence_free(sequence); }
};

/* Where C errors become exceptions, and are freed. */
inline void check(rrpc_error *found)
{
    if (found == nullptr) return;
    std::unique_ptr<rrpc_error, deleter> owned(found);
    throw error(rrpc_error_code(found), rrpc_error_message(found));
}

/* What `call(data, capacity, &count)` copies out, its size asked for first. */
template <class Container, class Call>
Container copied(Call &&call)
{
    Container out;
    std::size_t count = 0;
    check(call(nullptr, std::size_t{0}, &count));
    if (count == 0) return out;
    out.resize(count);
    check(call(out.data(), out.size(), &count));
    out.resize(count);
    return out;
}

} // namespace detail

/* ==== Views ==== */

/**
 * Elements that lie one behind the other and belong to somebody else, as std::string_view is for text:
 * made of a pointer and a count, or of anything with data() and size() (vector, array, C++20 span).
 */
template <class T>
class view {
public:
    constexpr view() noexcept = default;
    constexpr view(const T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class Container,
              class = std::enable_if_t<std::is_same_v<
                  std::remove_cv_t<std::remove_pointer_t<decltype(std::data(std::declval<const Container &>()))>>, T>>>
    constexpr view(const Container &container) : data_(std::data(container)), size_(std::size(container))
    {
    }

    constexpr const T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr const T *begin() const noexcept { return data_; }
    constexpr const T *end() const noexcept { return data_ + size_; }
    constexpr const T &operator[](std::size_t index) const { return data_[index]; }

private:
    const T *data_ = nullptr;
    std::size_t size_ = 0;
};

/* ==== Engines ==== */

/** rrpc_engine_options with its defaults. A path in it is the caller's and outlives the opening. */
struct engine_options : rrpc_engine_options {
    engine_options() : rrpc_engine_options{}
    {
        detail::check(rrpc_engine_options_init(this, sizeof(rrpc_engine_options)));
    }
};

struct sequence_options;

/** The most cache that an answer takes. */
struct cache_peak {
    /** The most entries (tokens) that a layer holds at any moment. */
    std::uint64_t entries;
    /** The most bytes of the cache. */
    std::uint64_t bytes;
};

/** An open model. */
class engine {
public:
    /** Opens a model folder, as rrpc_engine_open. */
    explicit engine(std::string_view model, const engine_options &options = engine_options())
    {
        if (model.find('\0') != model.npos)
            throw error(RRPC_ERROR_INVALID_ARGUMENT, "model: expected a path, found a NUL character in it");
        rrpc_engine *opened = nullptr;
        detail::check(rrpc_engine_open(std::string(model).c_str(), &options, &opened));
        handle_.reset(opened);
    }

    /** Takes over a handle from C. */
    static engine adopt(rrpc_engine *handle) noexcept { return engine(handle, 0); }
    /** The handle, for calls in C. It stays this object's. */
    rrpc_engine *get() const noexcept { return handle_.get(); }
    /** Gives the handle away; the caller frees it. */
    rrpc_engine *release() noexcept { return handle_.release(); }

    /** What the engine is and how much of its budget is in use. */
    rrpc_engine_info info() const
    {
        rrpc_engine_info info{};
        info.struct_size = sizeof info;
        detail::check(rrpc_engine_get_info(get(), &info));
        return info;
    }

    /** The tokens that end an answer. */
    std::vector<std::uint32_t> stop_tokens() const
    {
        return detail::copied<std::vector<std::uint32_t>>([this](auto... out) {
            return rrpc_engine_stop_tokens(get(), out...);
        });
    }

    /** The token ids of a text; `mode` is one of RRPC_TOKENIZE_. */
    std::vector<std::uint32_t> tokenize(std::string_view text, std::uint32_t mode = RRPC_TOKENIZE_PLAIN) const
    {
        const char *data = text.empty() ? "" : text.data();
        return detail::copied<std::vector<std::uint32_t>>([&](auto... out) {
            return rrpc_tokenize(get(), data, text.size(), mode, out...);
        });
    }

    /** The text of token ids. */
    std::string detokenize(view<std::uint32_t> tokens, bool skip_special = false) const
    {
        const std::uint32_t none = 0;
        const std::uint32_t *data = tokens.empty() ? &none : tokens.data();
        return detail::copied<std::string>([&](auto... out) {
            return rrpc_detokenize(get(), data, tokens.size(), skip_special ? 1 : 0, out...);
        });
    }

    /** The most cache that an answer of `new_tokens` to a text of `prompt_tokens` takes: exact. */
    cache_peak peak_cache_bytes(const sequence_options &options, std::uint64_t prompt_tokens,
                                std::uint64_t new_tokens) const;

private:
    engine(rrpc_engine *handle, int) noexcept : handle_(handle) {}

    std::unique_ptr<rrpc_engine, detail::deleter> handle_;
};

/* ==== Sequences ==== */

/** rrpc_sequence_options with its defaults, the sampling ones of the engine's model. */
struct sequence_options : rrpc_sequence_options {
    explicit sequence_options(const engine &of) : rrpc_sequence_options{}
    {
        detail::check(rrpc_sequence_options_init(of.get(), this, sizeof(rrpc_sequence_options)));
    }
};

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

/** What sequence::generate tells its callable. Fields that an event does not name are 0. */
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
        try {
            const event told{from->kind,
                             from->token,
                             std::string_view(from->text, from->text_len),
                             from->end_of_text != 0,
                             from->stop_reason,
                             from->prefill_done,
                             from->prefill_total};
            if constexpr (std::is_void_v<std::invoke_result_t<Callable &, const event &>>) {
                (*self.callable)(told);
                return 0;
            } else {
                return (*self.callable)(told) ? 0 : 1;
            }
        } catch (...) {
            self.thrown = std::current_exception();
            return 1;
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
    explicit sequence(rrpc_sequence *handle) noexcept : handle_(handle) {}

    generate_result run(const generate_options &options, rrpc_event_callback callback, void *user_data,
                        rrpc_error *&found)
    {
        rrpc_generate_options plain = options;
        std::vector<rrpc_text> texts;
        if (!options.stop_strings.empty()) {
            texts.reserve(options.stop_strings.size());
            for (const std::string &text : options.stop_strings) texts.push_back({text.data(), text.size()});
            plain.stop = texts.data();
            plain.stop_count = texts.size();
        }
        rrpc_generate_result result{};
        result.struct_size = sizeof result;
        found = rrpc_generate(get(), &plain, callback, user_data, &result);
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

} // namespace reasoning_rpc

#endif
