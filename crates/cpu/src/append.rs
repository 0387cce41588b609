use crate::element::Stored;
use crate::error::{Error, at_most, exactly};
use crate::pages::KvPagesMut;
use crate::simd::Simd;
use crate::vector::{Kernel, Vector};

/// Stores `key` and `value` (`head_dim` numbers each; the key already rotated) as entry `at`, which is either one of the valid entries
/// or the one right behind them, which then becomes valid.
///
/// Numbers are rounded to the nearest, ties to even. In `f16`, numbers beyond its range (infinities included) become +-65504, so that
/// a large key cannot turn later softmaxes into NaN; NaN stays NaN. In `i8`, key and value get scales as
/// [`write_rows`](crate::write_rows()) gives them.
///
/// # Errors
/// When `key` or `value` is not `head_dim` long, or `at` lies beyond the valid entries or the capacity.
pub fn append<E: Stored>(
    simd: Simd,
    pages: &mut KvPagesMut<'_, E>,
    at: usize,
    key: &[f32],
    value: &[f32],
) -> Result<(), Error> {
    simd.check()?;
    let head_dim = pages.layout().head_dim;
    exactly("floats in the key", head_dim, key.len())?;
    exactly("floats in the value", head_dim, value.len())?;
    at_most(
        "entry to append at",
        pages.len().min(pages.capacity().saturating_sub(1)),
        at,
    )?;
    if pages.capacity() == 0 {
        return Err(Error::TooSmall {
            what: "capacity",
            least: 1,
            found: 0,
        });
    }
    let (key_to, value_to) = (pages.tables().keys.at(at).0, pages.tables().values.at(at).0);
    let scales = pages
        .tables()
        .scales
        .as_ref()
        .map(|scales| (scales.keys.at(at).0, scales.values.at(at).0));
    // SAFETY: the set is available; `at` is within the capacity, so both destinations are `head_dim` writable elements, and the
    // sources are as long.
    unsafe {
        simd.run(Append {
            key: key.as_ptr(),
            value: value.as_ptr(),
            head_dim,
            key_to,
            value_to,
            scales,
        })
    }
    pages.set_len(pages.len().max(at + 1));
    Ok(())
}

struct Append<E> {
    key: *const f32,
    value: *const f32,
    head_dim: usize,
    key_to: *mut E,
    value_to: *mut E,
    /// Where the scales go, if the format has them.
    scales: Option<(*mut f32, *mut f32)>,
}

impl<E: Stored> Kernel for Append<E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller's contract.
        unsafe {
            let key_scale = E::store_row::<V>(self.key, self.head_dim, self.key_to);
            let value_scale = E::store_row::<V>(self.value, self.head_dim, self.value_to);
            if let Some((key, value)) = self.scales {
                *key = key_scale;
                *value = value_scale;
            }
        }
    }
}
