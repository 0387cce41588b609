/*
 * reasoning_rpc/scheduler.hpp: many answers at once.
 *
 *     reasoning_rpc::scheduler scheduler(engine);
 *     reasoning_rpc::scheduled_answer answer = scheduler.submit(sequence);
 *     for (const reasoning_rpc::event &event : answer) std::cout << event.text << std::flush;
 *
 * What reasoning_rpc.h says of schedulers and of each function holds here. A sequence that was submitted may be
 * moved and destroyed; other calls on it throw RRPC_ERROR_BUSY until RRPC_EVENT_END was read.
 *
 * Threads. A scheduler may be used by any number of threads at the same time. An answer is read by one thread at
 * a time; cancel and fd may be called from others.
 */

#ifndef REASONING_RPC_SCHEDULER_HPP
#define REASONING_RPC_SCHEDULER_HPP

#include <reasoning_rpc.hpp>

#include <algorithm>
#include <chrono>

namespace reasoning_rpc {

namespace detail {

struct scheduler_deleter {
    void operator()(rrpc_scheduler *scheduler) const noexcept { rrpc_scheduler_free(scheduler); }
    void operator()(rrpc_answer *answer) const noexcept { rrpc_answer_free(answer); }
};

} // namespace detail

/** rrpc_scheduler_options with its defaults. */
struct scheduler_options : rrpc_scheduler_options {
    scheduler_options() : rrpc_scheduler_options{}
    {
        detail::check(rrpc_scheduler_options_init(this, sizeof(rrpc_scheduler_options)));
    }
};

/**
 * An answer that a scheduler writes: a range of events for one loop, which waits for each; END is the last.
 * Destroying it cancels an answer that has not ended; leaving the loop does not. An event's text is valid until
 * the next one is asked for. Not to be moved while it is ranged over.
 */
class scheduled_answer {
public:
    using iterator = detail::event_iterator<scheduled_answer>;

    /** Takes over a handle from C. */
    static scheduled_answer adopt(rrpc_answer *handle) noexcept { return scheduled_answer(handle); }
    /** The handle, for calls in C. It stays this object's. */
    rrpc_answer *get() const noexcept { return handle_.get(); }
    /** Gives the handle away; the caller frees it. */
    rrpc_answer *release() noexcept { return handle_.release(); }

    /** Waits for the next event. */
    iterator begin()
    {
        pull();
        return iterator(this);
    }
    iterator end() const noexcept { return iterator(); }

    /** The next event; waits for it. */
    event next() { return try_next().value(); }
    /** The same, up to `timeout`; without an event in time, one of kind RRPC_EVENT_NONE. */
    event next(std::chrono::milliseconds timeout) { return try_next(timeout).value(); }
    expected<event> try_next() { return read(RRPC_WAIT_FOREVER); }
    expected<event> try_next(std::chrono::milliseconds timeout)
    {
        const std::chrono::milliseconds::rep most = RRPC_WAIT_FOREVER - 1, none = 0;
        return read(static_cast<std::uint32_t>(std::clamp(timeout.count(), none, most)));
    }

    /** Ends the answer before its next token; its events up to then, and END, are still to be read. */
    void cancel() { detail::check(rrpc_answer_cancel(get())); }

    /** For poll and epoll: readable while there is an event or an error to read. It is this object's. */
    int fd() const
    {
        std::int32_t fd = -1;
        detail::check(rrpc_answer_fd(get(), &fd));
        return fd;
    }

private:
    friend iterator;
    explicit scheduled_answer(rrpc_answer *handle) noexcept : handle_(handle) {}

    expected<event> read(std::uint32_t timeout_ms)
    {
        rrpc_event from{};
        from.struct_size = sizeof from;
        if (rrpc_error *found = rrpc_answer_next(get(), timeout_ms, &from)) return failure(found);
        return detail::event_of(from);
    }
    void pull() { event_ = next(); }

    std::unique_ptr<rrpc_answer, detail::scheduler_deleter> handle_;
    event event_{};
};

/** Writes many answers of one engine at once. Destroying it cancels them, and waits for its threads. */
class scheduler {
public:
    explicit scheduler(const engine &of, const scheduler_options &options = scheduler_options())
        : scheduler(try_create(of, options).value())
    {
    }
    static expected<scheduler> try_create(const engine &of, const rrpc_scheduler_options &options)
    {
        rrpc_scheduler *created = nullptr;
        if (rrpc_error *found = rrpc_scheduler_create(of.get(), &options, &created)) return failure(found);
        return adopt(created);
    }

    /** Takes over a handle from C. */
    static scheduler adopt(rrpc_scheduler *handle) noexcept { return scheduler(handle); }
    /** The handle, for calls in C. It stays this object's. */
    rrpc_scheduler *get() const noexcept { return handle_.get(); }
    /** Gives the handle away; the caller frees it. */
    rrpc_scheduler *release() noexcept { return handle_.release(); }

    /** Has an answer written, as rrpc_scheduler_submit. */
    scheduled_answer submit(sequence &to, const generate_options &options = generate_options()) const
    {
        return try_submit(to, options).value();
    }
    expected<scheduled_answer> try_submit(sequence &to, const generate_options &options = generate_options()) const
    {
        const detail::plain_options plain(options);
        rrpc_answer *submitted = nullptr;
        if (rrpc_error *found = rrpc_scheduler_submit(get(), to.get(), &plain.options, &submitted)) return failure(found);
        return scheduled_answer::adopt(submitted);
    }

    /** Figures: answers by what they wait for, steps, rows. */
    rrpc_scheduler_metrics metrics() const
    {
        rrpc_scheduler_metrics metrics{};
        metrics.struct_size = sizeof metrics;
        detail::check(rrpc_scheduler_get_metrics(get(), &metrics));
        return metrics;
    }
    /** The same in Prometheus' text exposition format; it can follow that of the engine. */
    std::string metrics_text() const
    {
        return detail::copied_text([this](auto... out) { return rrpc_scheduler_metrics_text(get(), out...); });
    }

private:
    explicit scheduler(rrpc_scheduler *handle) noexcept : handle_(handle) {}

    std::unique_ptr<rrpc_scheduler, detail::scheduler_deleter> handle_;
};

} // namespace reasoning_rpc

#endif
