/* Tensors of other libraries: what is taken over, what is refused, and how often the deleter runs. */
#include "host.h"

/* DLPack, as its header has it. */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dl_tensor;
typedef struct dl_managed {
    dl_tensor tensor;
    void *manager_ctx;
    void (*deleter)(struct dl_managed *self);
} dl_managed;
typedef struct dl_versioned {
    struct {
        uint32_t major, minor;
    } version;
    void *manager_ctx;
    void (*deleter)(struct dl_versioned *self);
    uint64_t flags;
    dl_tensor tensor;
} dl_versioned;
enum { DL_CPU = 1, DL_CUDA = 2, DL_CUDA_HOST = 3, DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4 };

static int deleted;

static void delete_managed(dl_managed *self)
{
    ++deleted;
    free(self->tensor.data);
    free(self->tensor.shape);
    free(self);
}

static void delete_versioned(dl_versioned *self)
{
    ++deleted;
    free(self->tensor.data);
    free(self->tensor.shape);
    free(self);
}

static dl_tensor tensor_of(int32_t ndim, const int64_t *shape)
{
    dl_tensor tensor = {.device = {DL_CPU, 0}, .ndim = ndim, .dtype = {DL_FLOAT, 32, 1}};
    size_t elements = 1;
    tensor.shape = malloc(9 * sizeof *tensor.shape);
    for (int32_t i = 0; i < ndim; ++i) {
        tensor.shape[i] = shape[i];
        elements *= (size_t)shape[i];
    }
    tensor.data = calloc(elements + 1, 4);
    return tensor;
}

static dl_managed *managed_of(int32_t ndim, const int64_t *shape)
{
    dl_managed *managed = malloc(sizeof *managed);
    *managed = (dl_managed){tensor_of(ndim, shape), NULL, delete_managed};
    return managed;
}

static dl_versioned *versioned_of(int32_t ndim, const int64_t *shape)
{
    dl_versioned *managed = malloc(sizeof *managed);
    *managed = (dl_versioned){.version = {1, 1}, .deleter = delete_versioned, .tensor = tensor_of(ndim, shape)};
    return managed;
}

static const int64_t SHAPE[] = {3, 2, 5, 4};

static void a_tensor_is_taken_over_and_let_go_once(void)
{
    deleted = 0;
    dl_managed *managed = managed_of(4, SHAPE);
    rrpc_tensor *tensor = NULL;
    NEED(rrpc_tensor_from_dlpack(managed, 0, &tensor));
    rrpc_tensor_info info = {.struct_size = sizeof info};
    OK(rrpc_tensor_get_info(tensor, &info));
    CHECK(info.data == managed->tensor.data && info.dimensions == 4 && info.dtype == RRPC_DTYPE_F32);
    CHECK(info.device == RRPC_DEVICE_CPU && info.device_index == 0 && info.read_only == 0);
    const int64_t compact[8] = {40, 20, 4, 1}, shape[8] = {3, 2, 5, 4};
    CHECK(memcmp(info.shape, shape, sizeof shape) == 0 && memcmp(info.strides, compact, sizeof compact) == 0);
    CHECK(deleted == 0);
    rrpc_tensor_free(tensor);
    CHECK(deleted == 1);
    rrpc_tensor_free(tensor);
    rrpc_tensor_free(NULL);
    CHECK(deleted == 1);
    FAILS(INVALID_HANDLE, "freed", rrpc_tensor_get_info(tensor, &info));
}

static void a_versioned_one_too(void)
{
    deleted = 0;
    dl_versioned *managed = versioned_of(2, SHAPE);
    managed->version.minor = 99;
    managed->flags = 1;
    managed->tensor.dtype.code = DL_BFLOAT;
    managed->tensor.dtype.bits = 16;
    managed->tensor.byte_offset = 2;
    int64_t strides[] = {7, 3};
    managed->tensor.strides = strides;
    rrpc_tensor *tensor = NULL;
    NEED(rrpc_tensor_from_dlpack(managed, 1, &tensor));
    rrpc_tensor_info info = {.struct_size = sizeof info};
    OK(rrpc_tensor_get_info(tensor, &info));
    CHECK(info.data == (char *)managed->tensor.data + 2 && info.dtype == RRPC_DTYPE_BF16 && info.read_only == 1);
    CHECK(info.dimensions == 2 && info.strides[0] == 7 && info.strides[1] == 3 && info.shape[2] == 0);
    rrpc_tensor_free(tensor);
    CHECK(deleted == 1);

    managed = versioned_of(0, NULL);
    managed->tensor.dtype.bits = 16;
    managed->tensor.device.type = DL_CUDA_HOST;
    NEED(rrpc_tensor_from_dlpack(managed, 1, &tensor));
    OK(rrpc_tensor_get_info(tensor, &info));
    CHECK(info.dimensions == 0 && info.dtype == RRPC_DTYPE_F16 && info.device == RRPC_DEVICE_CPU);
    rrpc_tensor_free(tensor);
    CHECK(deleted == 2);
}

static void a_deleter_may_be_missing(void)
{
    float data[6] = {0};
    int64_t shape[8] = {1, 1, 1, 1, 1, 1, 2, 3};
    dl_managed managed = {{.data = data, .device = {DL_CPU, 0}, .ndim = 8, .dtype = {DL_INT, 8, 1}, .shape = shape},
                          NULL, NULL};
    rrpc_tensor *tensor = NULL;
    NEED(rrpc_tensor_from_dlpack(&managed, 0, &tensor));
    rrpc_tensor_info info = {.struct_size = sizeof info};
    OK(rrpc_tensor_get_info(tensor, &info));
    CHECK(info.dtype == RRPC_DTYPE_I8 && info.dimensions == 8 && info.strides[0] == 6 && info.strides[7] == 1);
    rrpc_tensor_free(tensor);
}

/* Nothing is taken over and no deleter runs. */
#define REFUSED(code, words, managed, versioned)                                       \
    do {                                                                               \
        rrpc_tensor *refused_tensor = (rrpc_tensor *)&deleted;                         \
        FAILS(code, words, rrpc_tensor_from_dlpack(managed, versioned, &refused_tensor)); \
        CHECK(refused_tensor == NULL && deleted == 0);                                 \
    } while (0)

static void what_cannot_be_used_stays_the_callers(void)
{
    deleted = 0;
    dl_managed *managed = managed_of(4, SHAPE);
    dl_versioned *versioned = versioned_of(4, SHAPE);
    dl_tensor good = managed->tensor, *tensor = &managed->tensor;
    REFUSED(NULL_POINTER, "managed", NULL, 0);
    REFUSED(NULL_POINTER, "managed", NULL, 1);
    REFUSED(INVALID_ARGUMENT, "versioned", managed, 2);
    FAILS(NULL_POINTER, "tensor", rrpc_tensor_from_dlpack(managed, 0, NULL));

    versioned->version.major = 2;
    REFUSED(INVALID_ARGUMENT, "2.1", versioned, 1);
    versioned->version.major = 0;
    REFUSED(INVALID_ARGUMENT, "0.1", versioned, 1);
    versioned->version.major = 1;
    versioned->tensor.device.type = DL_CUDA;
    REFUSED(INVALID_ARGUMENT, "device type 2", versioned, 1);

    tensor->device.type = DL_CUDA;
    REFUSED(INVALID_ARGUMENT, "main memory", managed, 0);
    *tensor = good;
    tensor->ndim = 9;
    REFUSED(INVALID_ARGUMENT, "found 9", managed, 0);
    tensor->ndim = -1;
    REFUSED(INVALID_ARGUMENT, "found -1", managed, 0);
    *tensor = good;
    tensor->shape = NULL;
    REFUSED(NULL_POINTER, "shape", managed, 0);
    *tensor = good;
    tensor->data = NULL;
    REFUSED(NULL_POINTER, "data", managed, 0);
    *tensor = good;
    tensor->shape[2] = -5;
    REFUSED(INVALID_ARGUMENT, "shape[2]", managed, 0);
    tensor->shape[2] = INT64_MAX;
    REFUSED(INVALID_ARGUMENT, "2^63", managed, 0);
    tensor->shape[2] = 5;
    int64_t strides[] = {INT64_MIN, 20, 4, 1};
    tensor->strides = strides;
    REFUSED(INVALID_ARGUMENT, "2^63", managed, 0);
    strides[0] = INT64_MAX;
    REFUSED(INVALID_ARGUMENT, "2^63", managed, 0);
    *tensor = good;
    tensor->byte_offset = UINT64_MAX;
    REFUSED(INVALID_ARGUMENT, "byte_offset", managed, 0);
    *tensor = good;
    const struct {
        uint8_t code, bits;
        uint16_t lanes;
    } types[] = {{DL_FLOAT, 64, 1}, {DL_FLOAT, 32, 4}, {DL_INT, 32, 1}, {DL_UINT, 8, 1}, {DL_BFLOAT, 32, 1}, {10, 8, 1},
                 {DL_INT, 4, 2}, {DL_FLOAT, 16, 0}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; ++i) {
        tensor->dtype.code = types[i].code;
        tensor->dtype.bits = types[i].bits;
        tensor->dtype.lanes = types[i].lanes;
        REFUSED(INVALID_ARGUMENT, "expected float32", managed, 0);
    }
    *tensor = good;
    CHECK(deleted == 0);
    delete_managed(managed);
    delete_versioned(versioned);
}

static void handles_are_checked(void)
{
    rrpc_tensor_info info = {.struct_size = sizeof info};
    rrpc_kv_layer layer = {.struct_size = sizeof layer};
    rrpc_query_window window = {.struct_size = sizeof window};
    int on_stack = 0;
    void *garbage[] = {(void *)1, (void *)-1, &on_stack, (void *)0x5204000000000000, (void *)0x5204ffffffffffff,
                       (void *)0x5203000000100000};
    rrpc_tensor *tensor = NULL;
    NEED(rrpc_tensor_from_dlpack(managed_of(4, SHAPE), 0, &tensor));
    for (size_t i = 0; i < sizeof garbage / sizeof garbage[0]; ++i) {
        FAILS(INVALID_HANDLE, "expected a tensor", rrpc_tensor_get_info(garbage[i], &info));
        FAILS(INVALID_HANDLE, "expected a tensor",
              rrpc_kv_layer_from_tensors(garbage[i], tensor, RRPC_LAYOUT_HEAD_MAJOR, &layer));
        FAILS(INVALID_HANDLE, "expected a tensor",
              rrpc_kv_layer_from_tensors(tensor, garbage[i], RRPC_LAYOUT_HEAD_MAJOR, &layer));
        FAILS(INVALID_HANDLE, "expected a tensor",
              rrpc_query_window_from_tensor(garbage[i], RRPC_LAYOUT_HEAD_MAJOR, &window));
        rrpc_tensor_free(garbage[i]);
    }
    FAILS(NULL_POINTER, "tensor", rrpc_tensor_get_info(NULL, &info));
    FAILS(NULL_POINTER, "keys", rrpc_kv_layer_from_tensors(NULL, tensor, 0, &layer));
    FAILS(NULL_POINTER, "values", rrpc_kv_layer_from_tensors(tensor, NULL, 0, &layer));
    FAILS(NULL_POINTER, "queries", rrpc_query_window_from_tensor(NULL, 0, &window));
    FAILS(NULL_POINTER, "info", rrpc_tensor_get_info(tensor, NULL));
    FAILS(NULL_POINTER, "layer", rrpc_kv_layer_from_tensors(tensor, tensor, 0, NULL));
    FAILS(NULL_POINTER, "window", rrpc_query_window_from_tensor(tensor, 0, NULL));
    info.struct_size = layer.struct_size = window.struct_size = 0;
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_tensor_get_info(tensor, &info));
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_kv_layer_from_tensors(tensor, tensor, 0, &layer));
    FAILS(INVALID_ARGUMENT, "struct_size", rrpc_query_window_from_tensor(tensor, 0, &window));
    rrpc_tensor_free(tensor);
}

static rrpc_tensor *taken(dl_managed *managed)
{
    rrpc_tensor *tensor = NULL;
    NEED(rrpc_tensor_from_dlpack(managed, 0, &tensor));
    return tensor;
}

static void layers_have_the_tensors_strides(void)
{
    rrpc_tensor *keys = taken(managed_of(4, SHAPE)), *values = taken(managed_of(4, SHAPE));
    rrpc_tensor_info info = {.struct_size = sizeof info};
    OK(rrpc_tensor_get_info(values, &info));
    float scale = 1;
    rrpc_kv_layer layer = {.struct_size = sizeof layer, .layer = 7, .key_scales = &scale};
    OK(rrpc_kv_layer_from_tensors(keys, values, RRPC_LAYOUT_HEAD_MAJOR, &layer));
    const int64_t head_major[] = {40, 20, 4}, token_major[] = {40, 4, 20};
    CHECK(memcmp(layer.key_strides, head_major, sizeof head_major) == 0);
    CHECK(memcmp(layer.value_strides, head_major, sizeof head_major) == 0);
    CHECK(layer.values == info.data && layer.layer == 7 && layer.key_scales == &scale);
    OK(rrpc_kv_layer_from_tensors(keys, values, RRPC_LAYOUT_TOKEN_MAJOR, &layer));
    CHECK(memcmp(layer.key_strides, token_major, sizeof token_major) == 0);
    rrpc_query_window window = {.struct_size = sizeof window};
    OK(rrpc_query_window_from_tensor(values, RRPC_LAYOUT_HEAD_MAJOR, &window));
    const int64_t tokens_last[] = {40, 4, 20}, tokens_first[] = {40, 20, 4};
    CHECK(memcmp(window.strides, tokens_last, sizeof tokens_last) == 0 && window.ring_tokens == 5);
    CHECK(window.queries == info.data && window.dtype == RRPC_DTYPE_F32);
    OK(rrpc_query_window_from_tensor(values, RRPC_LAYOUT_TOKEN_MAJOR, &window));
    CHECK(memcmp(window.strides, tokens_first, sizeof tokens_first) == 0 && window.ring_tokens == 2);
    FAILS(INVALID_ARGUMENT, "layout", rrpc_kv_layer_from_tensors(keys, values, 2, &layer));
    FAILS(INVALID_ARGUMENT, "layout", rrpc_query_window_from_tensor(keys, 2, &window));
    rrpc_tensor_free(values);

    /* Others. */
    const int64_t longer[] = {3, 2, 6, 4}, empty[] = {3, 0, 5, 4};
    values = taken(managed_of(4, longer));
    FAILS(INVALID_ARGUMENT, "[3, 2, 6, 4]", rrpc_kv_layer_from_tensors(keys, values, 0, &layer));
    rrpc_tensor_free(values);
    values = taken(managed_of(3, SHAPE));
    FAILS(INVALID_ARGUMENT, "4 dimensions", rrpc_kv_layer_from_tensors(keys, values, 0, &layer));
    FAILS(INVALID_ARGUMENT, "4 dimensions", rrpc_query_window_from_tensor(values, 0, &window));
    rrpc_tensor_free(values);
    values = taken(managed_of(4, empty));
    FAILS(INVALID_ARGUMENT, "with elements", rrpc_kv_layer_from_tensors(keys, values, 0, &layer));
    rrpc_tensor_free(values);
    dl_managed *managed = managed_of(4, SHAPE);
    managed->tensor.dtype.code = DL_INT;
    managed->tensor.dtype.bits = 8;
    values = taken(managed);
    FAILS(INVALID_ARGUMENT, "dtype", rrpc_kv_layer_from_tensors(keys, values, 0, &layer));
    FAILS(INVALID_ARGUMENT, "int8", rrpc_query_window_from_tensor(values, 0, &window));
    rrpc_tensor_free(values);
    managed = managed_of(4, SHAPE);
    int64_t strides[] = {40, 20, 4, 2};
    managed->tensor.strides = strides;
    values = taken(managed);
    FAILS(INVALID_ARGUMENT, "last stride", rrpc_kv_layer_from_tensors(keys, values, 0, &layer));
    rrpc_tensor_free(values);
    managed = managed_of(4, SHAPE);
    strides[3] = 1;
    strides[1] = -20;
    managed->tensor.strides = strides;
    values = taken(managed);
    FAILS(INVALID_ARGUMENT, "positive strides", rrpc_kv_layer_from_tensors(keys, values, 0, &layer));
    rrpc_tensor_free(values);
    dl_versioned *versioned = versioned_of(4, SHAPE);
    versioned->flags = 1;
    NEED(rrpc_tensor_from_dlpack(versioned, 1, &values));
    FAILS(INVALID_ARGUMENT, "read-only", rrpc_kv_layer_from_tensors(keys, values, 0, &layer));
    FAILS(INVALID_ARGUMENT, "read-only", rrpc_kv_layer_from_tensors(values, keys, 0, &layer));
    OK(rrpc_query_window_from_tensor(values, 0, &window));
    rrpc_tensor_free(values);
    rrpc_tensor_free(keys);
}

/* Some libraries write 1 for the stride of a dimension of one: such entries do not overlap. */
static void strides_of_one_say_nothing(void)
{
    const int64_t one[] = {1, 1, 5, 4};
    dl_managed *managed = managed_of(4, one);
    int64_t strides[] = {1, 1, 4, 1};
    managed->tensor.strides = strides;
    rrpc_tensor *tensor = taken(managed);
    rrpc_kv_layer layer = {.struct_size = sizeof layer};
    OK(rrpc_kv_layer_from_tensors(tensor, tensor, RRPC_LAYOUT_HEAD_MAJOR, &layer));
    CHECK(layer.key_strides[0] >= 20 && layer.key_strides[1] >= 20 && layer.key_strides[2] == 4);
    rrpc_tensor_free(tensor);
}

/* A host's cache handed over: the layer and the window are those that the host would write, and serve. */
static void a_cache_is_compressed_where_it_lies(void)
{
    for (int layout = 0; layout < LAYOUTS; ++layout) {
        host host = new_host(RRPC_DTYPE_F32);
        cache cache = place(&host, layout);
        wire(&cache, &host);
        const rrpc_compressor_options *options = &host.options;
        int64_t outer = cache.paged ? cache.batch.block_count : cache.batch.row_count, entries = cache.batch.block_entries;
        int tokens = layout % 2;
        int64_t shape[] = {outer, tokens ? entries : options->kv_heads, tokens ? options->kv_heads : entries, options->head_dim};
        int64_t strides[] = {cache.strides[0], cache.strides[tokens ? 2 : 1], cache.strides[tokens ? 1 : 2], 1};
        int64_t ring_shape[] = {host.sequences + 1, cache.window.ring_tokens, options->heads, options->head_dim};
        dl_tensor of_cache = {.data = cache.keys, .device = {DL_CPU, 0}, .ndim = 4, .dtype = {DL_FLOAT, 32, 1},
                              .shape = shape, .strides = strides};
        dl_managed keys = {of_cache, NULL, NULL}, values = keys, ring = keys;
        int64_t value_strides[] = {cache.value_strides[0], cache.value_strides[tokens ? 2 : 1],
                                   cache.value_strides[tokens ? 1 : 2], 1};
        values.tensor.data = cache.values;
        values.tensor.strides = value_strides;
        ring.tensor.data = cache.ring;
        ring.tensor.shape = ring_shape;
        ring.tensor.strides = NULL;
        rrpc_tensor *key_tensor = taken(&keys), *value_tensor = taken(&values), *ring_tensor = taken(&ring);
        rrpc_kv_layer layer = {.struct_size = sizeof layer};
        rrpc_query_window window = {.struct_size = sizeof window, .oldest = cache.oldest};
        OK(rrpc_kv_layer_from_tensors(key_tensor, value_tensor, tokens ? RRPC_LAYOUT_TOKEN_MAJOR : RRPC_LAYOUT_HEAD_MAJOR,
                                      &layer));
        OK(rrpc_query_window_from_tensor(ring_tensor, RRPC_LAYOUT_TOKEN_MAJOR, &window));
        CHECK(layer.keys == cache.layer.keys && layer.values == cache.layer.values);
        for (int dimension = 0; dimension < 3; ++dimension) {
            /* The stride of a dimension of one says nothing, and may be another. */
            const int64_t size = shape[tokens && dimension > 0 ? 3 - dimension : dimension];
            CHECK(size == 1 || layer.key_strides[dimension] == cache.layer.key_strides[dimension]);
            CHECK(size == 1 || layer.value_strides[dimension] == cache.layer.value_strides[dimension]);
        }
        rrpc_compressor *compressor = new_compressor(&host);
        size_t bytes;
        char *workspace = workspace_for(compressor, &cache, &bytes, NULL);
        unsigned char *expected[2];
        rrpc_plan plan = {.struct_size = sizeof plan};
        NEED(rrpc_compressor_compress(compressor, &cache.layer, &cache.batch, &cache.window, workspace, bytes, &plan));
        expected[0] = copy_of(cache.keys, cache.bytes);
        expected[1] = copy_of(cache.values, cache.bytes);
        memcpy(cache.keys, cache.keys_before, cache.bytes);
        memcpy(cache.values, cache.values_before, cache.bytes);
        NEED(rrpc_compressor_compress(compressor, &layer, &cache.batch, &window, workspace, bytes, &plan));
        CHECK(memcmp(expected[0], cache.keys, cache.bytes) == 0 && memcmp(expected[1], cache.values, cache.bytes) == 0);
        rrpc_tensor_free(key_tensor);
        rrpc_tensor_free(value_tensor);
        rrpc_tensor_free(ring_tensor);
        free(expected[0]);
        free(expected[1]);
        free(workspace);
        rrpc_compressor_free(compressor);
        free_cache(&cache);
        free_host(&host);
    }
}

int main(void)
{
    seed_random();
    RUN(a_tensor_is_taken_over_and_let_go_once);
    RUN(a_versioned_one_too);
    RUN(a_deleter_may_be_missing);
    RUN(what_cannot_be_used_stays_the_callers);
    RUN(handles_are_checked);
    RUN(layers_have_the_tensors_strides);
    RUN(strides_of_one_say_nothing);
    RUN(a_cache_is_compressed_where_it_lies);
    return check_end("dlpack");
}
