//! A callback that unwinds, as one written in Rust may: an error of the call. A compressor has moved nothing; a
//! sequence is poisoned, and no other one.

#![allow(unsafe_code)] // what C would do
#![allow(clippy::panic, clippy::unwrap_used)] // tests

use std::ffi::{CString, c_void};
use std::ptr;

use reasoning_rpc::*;
use reasoning_rpc_test_support::model;

unsafe extern "C-unwind" fn unwinds(_: *mut rrpc_select_request, _: *mut c_void) -> i32 {
    panic!("on purpose");
}

fn zeroed<T>(size_first: impl FnOnce(&mut T)) -> T {
    // SAFETY: the structs that this is used for are integers and raw pointers.
    let mut made = unsafe { std::mem::zeroed() };
    size_first(&mut made);
    made
}

#[test]
fn a_callback_that_unwinds_is_an_internal_error() {
    let (entries, head_dim) = (32usize, 8usize);
    let keys: Vec<f32> = (0..entries * head_dim).map(|i| (i % 7) as f32).collect();
    let (mut moved_keys, mut values) = (keys.clone(), keys.clone());
    let queries = [1f32; 8];
    let (lengths, zeros) = ([entries as i32], [0i32]);
    let strides = [
        (entries * head_dim) as i64,
        (entries * head_dim) as i64,
        head_dim as i64,
    ];
    let layer: rrpc_kv_layer = zeroed(|layer: &mut rrpc_kv_layer| {
        layer.struct_size = size_of::<rrpc_kv_layer>();
        layer.keys = moved_keys.as_mut_ptr().cast();
        layer.values = values.as_mut_ptr().cast();
        layer.key_strides = strides;
        layer.value_strides = strides;
    });
    let batch = zeroed(|batch: &mut rrpc_kv_batch| {
        batch.struct_size = size_of::<rrpc_kv_batch>();
        batch.lengths = lengths.as_ptr();
        batch.prompt_lengths = zeros.as_ptr();
        batch.compressions = zeros.as_ptr();
        (batch.sequences, batch.row_count, batch.block_entries) = (1, 1, entries as u32);
    });
    let window = zeroed(|window: &mut rrpc_query_window| {
        window.struct_size = size_of::<rrpc_query_window>();
        window.queries = queries.as_ptr().cast();
        window.strides = [8, 8, 8];
        (window.ring_tokens, window.dtype) = (1, RRPC_DTYPE_F32);
    });
    let mut sizes = zeroed(|sizes: &mut rrpc_compressor_sizes| {
        sizes.struct_size = size_of::<rrpc_compressor_sizes>();
    });
    let mut plan = zeroed(|plan: &mut rrpc_plan| plan.struct_size = size_of::<rrpc_plan>());
    let mut options = zeroed(|_: &mut rrpc_compressor_options| ());
    let mut compressor = ptr::null_mut();
    // SAFETY: every struct, array and tensor is as it says and lives to the end.
    unsafe {
        assert!(
            rrpc_compressor_options_init(&raw mut options, size_of::<rrpc_compressor_options>()).is_null()
        );
        (options.heads, options.kv_heads, options.head_dim) = (1, 1, head_dim as u32);
        (options.interval, options.window, options.dtype) = (8, 1, RRPC_DTYPE_F32);
        options.policy = RRPC_POLICY_CALLBACK;
        options.select = Some(unwinds);
        assert!(rrpc_compressor_create(&raw const options, &raw mut compressor).is_null());
        assert!(rrpc_compressor_get_sizes(compressor, &raw const batch, &raw mut sizes).is_null());
        let mut workspace = vec![0u8; sizes.workspace_bytes];
        for _ in 0..2 {
            let error = rrpc_compressor_compress(
                compressor,
                &raw const layer,
                &raw const batch,
                &raw const window,
                workspace.as_mut_ptr().cast(),
                workspace.len(),
                &raw mut plan,
            );
            assert_eq!(rrpc_error_code(error), RRPC_ERROR_INTERNAL);
            rrpc_error_free(error);
        }
        rrpc_compressor_free(compressor);
    }
    assert_eq!((moved_keys, values), (keys.clone(), keys));
}

unsafe extern "C-unwind" fn unwinds_at_a_token(event: *const rrpc_event, _: *mut c_void) -> i32 {
    // SAFETY: valid during the call.
    assert!(unsafe { (*event).kind } != RRPC_EVENT_TOKEN, "on purpose");
    0
}

fn code_of(error: *mut rrpc_error) -> i32 {
    // SAFETY: an error of the library, or NULL.
    unsafe {
        let code = rrpc_error_code(error);
        rrpc_error_free(error);
        code
    }
}

#[test]
fn an_answer_whose_callback_unwinds_poisons_its_sequence_alone() {
    let folder = CString::new(
        model("golden/qwen2_p32-cached")
            .into_os_string()
            .into_encoded_bytes(),
    )
    .unwrap();
    let options = zeroed(|options: &mut rrpc_generate_options| {
        // SAFETY: the struct is writable and of that size.
        unsafe {
            let size = size_of::<rrpc_generate_options>();
            assert!(rrpc_generate_options_init(options, size).is_null());
        }
        options.max_tokens = 5;
    });
    let (mut engine, mut hurt, mut sound) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let prompt = [1u32, 2, 3];
    // SAFETY: handles of the library, and arrays that outlive the calls.
    unsafe {
        assert_eq!(
            code_of(rrpc_engine_open(folder.as_ptr(), ptr::null(), &raw mut engine)),
            RRPC_OK
        );
        for sequence in [&raw mut hurt, &raw mut sound] {
            assert_eq!(
                code_of(rrpc_sequence_create(engine, ptr::null(), sequence)),
                RRPC_OK
            );
            assert_eq!(
                code_of(rrpc_sequence_append_tokens(*sequence, prompt.as_ptr(), 3)),
                RRPC_OK
            );
        }
        let answer = |sequence, callback| {
            code_of(rrpc_generate(
                sequence,
                &raw const options,
                callback,
                ptr::null_mut(),
                ptr::null_mut(),
            ))
        };
        assert_eq!(answer(hurt, Some(unwinds_at_a_token)), RRPC_ERROR_INTERNAL);
        assert_eq!(answer(hurt, None), RRPC_ERROR_POISONED);
        let mut count = 0;
        assert_eq!(
            code_of(rrpc_sequence_tokens(hurt, ptr::null_mut(), 0, &raw mut count)),
            RRPC_ERROR_POISONED
        );
        let mut forked = ptr::null_mut();
        assert_eq!(
            code_of(rrpc_sequence_fork(hurt, &raw mut forked)),
            RRPC_ERROR_POISONED
        );
        assert_eq!(answer(sound, None), RRPC_OK);
        rrpc_sequence_free(hurt);
        assert_eq!(
            code_of(rrpc_sequence_tokens(hurt, ptr::null_mut(), 0, &raw mut count)),
            RRPC_ERROR_INVALID_HANDLE
        );
        assert_eq!(answer(sound, None), RRPC_OK);
        rrpc_sequence_free(sound);
        rrpc_engine_free(engine);
    }
}
