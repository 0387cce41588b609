//! `i8` with scales: what its conversion gives at its edges, and that scales are neither forgotten nor made up.

use crate::rng::Rng;
use reasoning_rpc_cpu::*;
use std::ptr::NonNull;

/// A dense cache of `i8`.
struct Cache {
    keys: Vec<i8>,
    values: Vec<i8>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    tables: [NonNull<i8>; 2],
    scale_tables: [NonNull<f32>; 2],
    layout: Layout,
}

impl Cache {
    fn new(len: usize, head_dim: usize) -> Cache {
        let mut cache = Cache {
            keys: vec![1; len * head_dim],
            values: vec![2; len * head_dim],
            key_scales: vec![1.0; len],
            value_scales: vec![1.0; len],
            tables: [NonNull::dangling(); 2],
            scale_tables: [NonNull::dangling(); 2],
            layout: Layout::contiguous(len, head_dim),
        };
        cache.tables = [&mut cache.keys, &mut cache.values].map(|part| NonNull::from(&mut part[..]).cast());
        cache.scale_tables =
            [&mut cache.key_scales, &mut cache.value_scales].map(|part| NonNull::from(&mut part[..]).cast());
        cache
    }

    fn pages(&mut self) -> KvPagesMut<'_, i8> {
        let len = self.layout.page_entries;
        let scales = Scales {
            keys: &self.scale_tables[..1],
            values: &self.scale_tables[1..],
            key_stride: 1,
            value_stride: 1,
        };
        // SAFETY: the pages are this cache's vectors, which it lends exclusively.
        unsafe {
            KvPagesMut::with_scales(
                &self.tables[..1],
                &self.tables[1..],
                Some(scales),
                self.layout,
                len,
            )
        }
        .unwrap()
    }
}

#[test]
fn rows_at_the_edges_of_the_format() {
    let mut cache = Cache::new(6, 8);
    let rows: [[f32; 8]; 6] = [
        [0.0; 8],
        [127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5],
        [f32::MAX, -f32::MAX, 0.0, 1.0, f32::MAX / 127.0, 0.0, 0.0, 0.0],
        [1.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 2.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1e-45, -1e-45, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ];
    // Keys as they are, values negated.
    let both: Vec<f32> = rows
        .iter()
        .flat_map(|row| row.iter().copied().chain(row.iter().map(|x| -x)))
        .collect();
    write_rows(&mut cache.pages(), 0..6, &both).unwrap();
    assert_eq!(cache.key_scales[..3], [0.0, 1.0, f32::MAX / 127.0]);
    assert!(cache.key_scales[3].is_nan() && cache.value_scales[4].is_nan());
    assert_eq!(cache.key_scales[5], 0.0, "too small to have a scale");
    let zeros = [0; 8];
    assert_eq!(cache.keys[..8], zeros);
    assert_eq!(
        cache.keys[8..16],
        [127, -127, 0, 2, 2, 0, -2, 126],
        "ties to even"
    );
    assert_eq!(cache.values[8..16], [-127, 127, 0, -2, -2, 0, 2, -126]);
    assert_eq!(cache.keys[16..24], [127, -127, 0, 0, 1, 0, 0, 0]);
    for e in 3..6 {
        assert_eq!(cache.keys[8 * e..8 * e + 8], zeros);
    }
}

/// Rows that hold whole multiples of a scale come back bit for bit.
#[test]
fn stored_rows_are_stored_again_as_they_are() {
    let rng = &mut Rng::new();
    for _ in 0..200 {
        let head_dim = rng.head_dim();
        let mut cache = Cache::new(1, head_dim);
        let mut row = || {
            let mut row: Vec<i8> = (0..head_dim)
                .map(|_| rng.between(0, 254) as i16 - 127)
                .map(|x| x as i8)
                .collect();
            row[0] = 127;
            // A power of two, so that no product rounds.
            (row, 2f32.powi(rng.between(0, 40) as i32 - 20))
        };
        let ((keys, key_scale), (values, value_scale)) = (row(), row());
        let numbers: Vec<f32> = (keys.iter().map(|&x| f32::from(x) * key_scale))
            .chain(values.iter().map(|&x| f32::from(x) * value_scale))
            .collect();
        write_rows(&mut cache.pages(), std::iter::once(0), &numbers).unwrap();
        assert_eq!((cache.keys, cache.values), (keys, values));
        assert_eq!(
            (cache.key_scales[0], cache.value_scales[0]),
            (key_scale, value_scale)
        );
    }
}

#[test]
fn scales_belong_to_the_format() {
    let (page, scale) = ([NonNull::<i8>::dangling()], [NonNull::<f32>::dangling()]);
    let layout = Layout::contiguous(4, 8);
    let scales = Scales {
        keys: &scale,
        values: &scale,
        key_stride: 1,
        value_stride: 3,
    };
    let open = |scales| {
        // SAFETY: no valid entries, nothing is read.
        unsafe { KvPages::with_scales(&page, &page, scales, layout, 0) }.map(|_| ())
    };
    assert_eq!(open(Some(scales)), Ok(()));
    let tables = |expected, found| {
        Err(Error::Mismatch {
            what: "tables of scales",
            expected,
            found,
        })
    };
    assert_eq!(open(None), tables(1, 0));
    // SAFETY: as above.
    let floats = unsafe { KvPages::<f32>::with_scales(&scale, &scale, Some(scales), layout, 0) };
    assert_eq!(floats.map(|_| ()), tables(0, 1));
    let stride = |what| {
        Err(Error::TooSmall {
            what,
            least: 1,
            found: 0,
        })
    };
    assert_eq!(
        open(Some(Scales {
            key_stride: 0,
            ..scales
        })),
        stride("stride of the keys' scales")
    );
    assert_eq!(
        open(Some(Scales {
            value_stride: 0,
            ..scales
        })),
        stride("stride of the values' scales")
    );
    let pages = |what| {
        Err(Error::Mismatch {
            what,
            expected: 1,
            found: 0,
        })
    };
    assert_eq!(
        open(Some(Scales { keys: &[], ..scales })),
        pages("pages of the keys' scales")
    );
    assert_eq!(
        open(Some(Scales {
            values: &[],
            ..scales
        })),
        pages("pages of the values' scales")
    );
    assert!(matches!(
        open(Some(Scales {
            key_stride: usize::MAX,
            ..scales
        })),
        Err(Error::Overflow { .. })
    ));
    // SAFETY: as above.
    let mutable = unsafe { KvPagesMut::with_scales(&page, &page, None, layout, 0) };
    assert_eq!(mutable.map(|_| ()), tables(1, 0));
}
