/*
 * reasoning_rpc/compressor.hpp: the compressor for KV caches that a host program owns, and tensors that come by
 * DLPack. No engine, model or ONNX Runtime is needed.
 *
 * What the compressor's part of reasoning_rpc.h says of shapes, strides and shared blocks holds here. Structs of
 * this header are those of C with struct_size set and the rest 0. Nothing here copies a cache; pointers in
 * structs are the caller's and are read during a call only.
 *
 * Threads. A compressor may be used by any number of threads at the same time, each with its own workspace and
 * its own blocks.
 */

#ifndef REASONING_RPC_COMPRESSOR_HPP
#define REASONING_RPC_COMPRESSOR_HPP

#include <reasoning_rpc.hpp>

namespace reasoning_rpc {

namespace detail {

struct compressor_deleter {
    void operator()(rrpc_compressor *compressor) const noexcept { rrpc_compressor_free(compressor); }
    void operator()(rrpc_tensor *tensor) const noexcept { rrpc_tensor_free(tensor); }
};

/* A C struct that knows its size. */
template <class Plain>
struct zeroed : Plain {
    zeroed() noexcept : Plain{} { this->struct_size = sizeof(Plain); }
};

} // namespace detail

using kv_layer = detail::zeroed<rrpc_kv_layer>;
using kv_batch = detail::zeroed<rrpc_kv_batch>;
using query_window = detail::zeroed<rrpc_query_window>;
/** What is kept. One from select or compress points into its workspace. */
using compression_plan = detail::zeroed<rrpc_plan>;
using tensor_info = detail::zeroed<rrpc_tensor_info>;
/** Bytes that work alone may use. */
using workspace = std::vector<std::byte>;

/** rrpc_compressor_options with its defaults; heads, kv_heads and head_dim must be set. */
struct compressor_options : rrpc_compressor_options {
    compressor_options() : rrpc_compressor_options{}
    {
        detail::check(rrpc_compressor_options_init(this, sizeof(rrpc_compressor_options)));
    }
};

/** Scores, selects and compacts the caches of a host. */
class compressor {
public:
    explicit compressor(const compressor_options &options) : compressor(try_create(options).value()) {}
    static expected<compressor> try_create(const rrpc_compressor_options &options)
    {
        rrpc_compressor *created = nullptr;
        if (rrpc_error *found = rrpc_compressor_create(&options, &created)) return failure(found);
        return adopt(created);
    }

    /** Takes over a handle from C. */
    static compressor adopt(rrpc_compressor *handle) noexcept { return compressor(handle); }
    /** The handle, for calls in C. It stays this object's. */
    rrpc_compressor *get() const noexcept { return handle_.get(); }
    /** Gives the handle away; the caller frees it. */
    rrpc_compressor *release() noexcept { return handle_.release(); }

    /** Whether a sequence with so many generated entries written is to be compressed now. */
    bool due(std::uint64_t generated, std::uint64_t compressions) const
    {
        std::uint32_t due = 0;
        detail::check(rrpc_compressor_due(get(), generated, compressions, &due));
        return due != 0;
    }

    /** Keeps one token's rotated queries, [slots][heads][head_dim] with these strides in elements. */
    void record(std::uint32_t layer, view<std::int32_t> slots, const void *queries, std::int64_t row_stride,
                std::int64_t head_stride, std::uint32_t dtype) const
    {
        detail::check(rrpc_compressor_record(get(), layer, slots.data(), slots.size(), queries, row_stride, head_stride,
                                             dtype));
    }
    /** The slot begins anew. */
    void forget(std::int32_t slot) const { detail::check(rrpc_compressor_forget(get(), slot)); }

    /** Bytes of the workspace and number of scores for a batch. */
    rrpc_compressor_sizes sizes(const rrpc_kv_batch &batch) const
    {
        detail::zeroed<rrpc_compressor_sizes> sizes;
        detail::check(rrpc_compressor_get_sizes(get(), &batch, &sizes));
        return sizes;
    }

    /** Per sequence [kv_heads][candidates], one after the other. Both vectors are grown as the batch needs. */
    void score(const rrpc_kv_layer &layer, const rrpc_kv_batch &batch, const rrpc_query_window &window,
               std::vector<float> &scores, workspace &space) const
    {
        scores.resize(fit(batch, space).score_count);
        detail::check(rrpc_compressor_score(get(), &layer, &batch, &window, scores.data(), scores.size(), space.data(),
                                            space.size()));
    }
    /** The plan lies in the workspace: valid until that is used by select, plan or compress again, grown or gone. */
    compression_plan select(std::uint32_t layer, const rrpc_kv_batch &batch, view<float> scores, workspace &space) const
    {
        compression_plan plan;
        fit(batch, space);
        detail::check(rrpc_compressor_select(get(), layer, &batch, scores.data(), scores.size(), space.data(),
                                             space.size(), &plan));
        return plan;
    }
    /** score and select, for every policy; writes nothing but the plan. */
    compression_plan plan(const rrpc_kv_layer &layer, const rrpc_kv_batch &batch, const rrpc_query_window &window,
                          workspace &space) const
    {
        compression_plan plan;
        fit(batch, space);
        detail::check(
            rrpc_compressor_plan(get(), &layer, &batch, &window, space.data(), space.size(), &plan));
        return plan;
    }
    /** Compacts in place by a plan: select's or plan's, a changed one, or the caller's own. Leaves the workspace's size. */
    void apply(const rrpc_kv_layer &layer, const rrpc_kv_batch &batch, const rrpc_plan &plan, workspace &space) const
    {
        detail::check(rrpc_compressor_apply(get(), &layer, &batch, &plan, space.data(), space.size()));
    }
    /** plan and apply. */
    compression_plan compress(const rrpc_kv_layer &layer, const rrpc_kv_batch &batch, const rrpc_query_window &window,
                              workspace &space) const
    {
        fit(batch, space);
        return try_compress(layer, batch, window, space).value();
    }
    /** The same with a workspace that is large enough: nothing allocates, waits or locks. */
    expected<compression_plan> try_compress(const rrpc_kv_layer &layer, const rrpc_kv_batch &batch,
                                            const rrpc_query_window &window, workspace &space) const
    {
        compression_plan plan;
        if (rrpc_error *found =
                rrpc_compressor_compress(get(), &layer, &batch, &window, space.data(), space.size(), &plan))
            return failure(found);
        return plan;
    }

private:
    explicit compressor(rrpc_compressor *handle) noexcept : handle_(handle) {}

    rrpc_compressor_sizes fit(const rrpc_kv_batch &batch, workspace &space) const
    {
        const rrpc_compressor_sizes needed = sizes(batch);
        if (space.size() < needed.workspace_bytes) space.resize(needed.workspace_bytes);
        return needed;
    }

    std::unique_ptr<rrpc_compressor, detail::compressor_deleter> handle_;
};

/** A tensor that came by DLPack. Its deleter runs exactly once, when this is destroyed. */
class tensor {
public:
    /** Takes over a DLManagedTensor, or a DLManagedTensorVersioned. After an error it is still the caller's. */
    tensor(void *managed, bool versioned)
    {
        rrpc_tensor *taken = nullptr;
        detail::check(rrpc_tensor_from_dlpack(managed, versioned ? 1 : 0, &taken));
        handle_.reset(taken);
    }
    /** The handle, for calls in C. It stays this object's. */
    rrpc_tensor *get() const noexcept { return handle_.get(); }

    tensor_info info() const
    {
        tensor_info info;
        detail::check(rrpc_tensor_get_info(get(), &info));
        return info;
    }

private:
    std::unique_ptr<rrpc_tensor, detail::compressor_deleter> handle_;
};

/** One layer's memory; `layout` is one of RRPC_LAYOUT_. The tensors must live as long as it is used. */
inline kv_layer layer_of(const tensor &keys, const tensor &values, std::uint32_t layout)
{
    kv_layer layer;
    detail::check(rrpc_kv_layer_from_tensors(keys.get(), values.get(), layout, &layer));
    return layer;
}

/** A window of the host's queries. The tensor must live as long as it is used. */
inline query_window window_of(const tensor &queries, std::uint32_t layout)
{
    query_window window;
    detail::check(rrpc_query_window_from_tensor(queries.get(), layout, &window));
    return window;
}

} // namespace reasoning_rpc

#endif
