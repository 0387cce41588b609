use super::Buffers;
use super::record::{MAXIMA_AT, RECORDED_ROW, SUMS_AT};
use crate::element::Stored;
use crate::kernels::{Ahead, Dot, TILE, Weigh};
use crate::pages::Tables;
use crate::vector::{Kernel, Vector};

/// How many bytes ahead of the current ones are fetched, but never more than a tile: with less, memory is not kept busy; with more,
/// nothing is gained (measured with `examples/bandwidth.rs` on Zen 4).
pub(super) const AHEAD_BYTES: usize = 24 << 10;

/// Addresses of the entries of a tile and of the next one, in the order in which they are read (keys, values, next keys, next values),
/// so that what comes next can be fetched across the borders of pages and tensors.
pub(super) struct Addresses<'a, E> {
    list: [*const E; 4 * TILE],
    tables: &'a Tables<'a, E>,
    /// Entries whose addresses are in the list or have been.
    listed: usize,
    end: usize,
}

impl<'a, E: Stored> Addresses<'a, E> {
    /// Those of the entries `start..end`, at least one; before the first tile.
    #[inline(always)]
    pub(super) fn new(tables: &'a Tables<'a, E>, start: usize, end: usize) -> Self {
        // What is not an entry's address is one that may be fetched.
        let any: *const E = tables.keys.at(start).0;
        let mut addresses = Addresses {
            list: [any; 4 * TILE],
            tables,
            listed: start,
            end,
        };
        addresses.list_next();
        addresses
    }

    /// Goes to the next tile. Behind the last one of all, the next tile is some earlier one.
    #[inline(always)]
    pub(super) fn advance(&mut self) {
        self.list.copy_within(2 * TILE.., 0);
        self.list_next();
    }

    #[inline(always)]
    fn list_next(&mut self) {
        let entries = TILE.min(self.end - self.listed);
        let (keys, values) = self.list[2 * TILE..].split_at_mut(TILE);
        self.tables.keys.addresses(self.listed, &mut keys[..entries]);
        self.tables.values.addresses(self.listed, &mut values[..entries]);
        self.listed += entries;
    }

    /// The tile's keys and values, as [`Tile::run`] wants them.
    #[inline(always)]
    pub(super) fn tile(&self) -> &[*const E] {
        &self.list
    }

    #[inline(always)]
    pub(super) fn keys(&self) -> &[*const E] {
        &self.list[..TILE]
    }

    #[inline(always)]
    pub(super) fn values(&self) -> &[*const E] {
        &self.list[TILE..2 * TILE]
    }

    /// What lies `distance` entries ahead of the keys; at most `2 * TILE`.
    #[inline(always)]
    pub(super) fn ahead(&self, distance: usize) -> Ahead<E> {
        Ahead(self.list[distance..].as_ptr())
    }
}

/// The queries `from..to`, all of which see the first `seen` entries of a tile.
pub(super) struct Tile<'a> {
    pub(super) b: &'a Buffers,
    pub(super) from: usize,
    pub(super) to: usize,
    /// Where the rows of others in the places of query 0 and on begin, whose weights are recorded; 0 if there are none.
    pub(super) others: usize,
    pub(super) seen: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
    /// The chunk's rows of [`RECORDED_ROW`] floats that weights go to, or null.
    pub(super) record: *mut f32,
    /// Entries of the chunk before the tile.
    pub(super) first: usize,
}

impl Tile<'_> {
    /// The rows of queries that are multiplied with the keys, as ranges from the first to behind the last: the queries', and the others'.
    #[inline(always)]
    pub(super) fn asked(&self) -> [(usize, usize); 2] {
        match self.others {
            0 => [(self.from, self.to), (0, 0)],
            // Of all queries: next to each other.
            others if self.to - self.from == others => [(0, 2 * others), (0, 0)],
            others => [(self.from, self.to), (others + self.from, others + self.to)],
        }
    }

    /// `tile` lists the keys' addresses, from `TILE` on the values'; up to the next multiple of four they are readable.
    #[inline(always)]
    pub(super) unsafe fn run<V: Vector, E: Stored, S: Stored>(&self, tile: &[*const E], ahead: Ahead<S>) {
        let weights = self.b.weights.between(self.from, self.to);
        // SAFETY: the caller's contract; `ahead` goes on for at least two tiles.
        unsafe {
            for (index, (from, to)) in self.asked().into_iter().enumerate() {
                if from < to {
                    V::call(Dot {
                        queries: self.b.queries.between(from, to),
                        keys: tile.as_ptr(),
                        entries: self.seen,
                        head_dim: self.head_dim,
                        out: self.b.weights.between(from, to),
                        ahead: (index == 0).then_some(ahead),
                    });
                }
            }
            V::call(Soften::<false> {
                tile: self,
                query_steps: std::ptr::null(),
                key_scales: std::ptr::null(),
            });
            V::call(Weigh {
                weights,
                sums: self.b.sums.between(self.from, self.to),
                factors: self.b.factors.add(self.from),
                values: tile[TILE..].as_ptr(),
                entries: self.seen,
                head_dim: self.head_dim,
                ahead: Some(Ahead(ahead.0.add(TILE))),
            });
        }
    }
}

/// Turns the queries' logits of a tile into weights relative to each query's new maximum, and updates maxima, totals and factors.
pub(super) struct Soften<'a, const SCALED: bool> {
    pub(super) tile: &'a Tile<'a>,
    /// If `SCALED`: what the logits are multiples of, for each query and each entry.
    pub(super) query_steps: *const f32,
    pub(super) key_scales: *const f32,
}

impl<const SCALED: bool> Kernel for Soften<'_, SCALED> {
    type Output = ();

    /// In three passes, so that the steps of several queries overlap.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Tile {
            b,
            from,
            to,
            others,
            seen,
            record,
            ..
        } = *self.tile;
        // SAFETY: a row of weights has `TILE` numbers, a multiple of LANES; a recorded row has room for whole registers of its tiles.
        unsafe {
            for q in from..to {
                let before = *b.maxima.add(q);
                let tile = self.largest::<V>(q);
                let now = if tile > before { tile } else { before };
                *b.maxima.add(q) = now;
                *b.factors.add(q) = before - now;
            }
            for q in from..to {
                let (row, now) = (b.weights.row(q), *b.maxima.add(q));
                let sum = Self::weights::<V>(row, now, seen, row);
                if !record.is_null() && others == 0 {
                    let to = record.add(q * RECORDED_ROW);
                    std::ptr::copy_nonoverlapping(
                        row,
                        to.add(self.tile.first),
                        seen.next_multiple_of(V::LANES),
                    );
                    self.note(to, now, sum);
                }
                let change = *b.factors.add(q);
                let factor = if change == 0.0 {
                    1.0
                } else {
                    V::splat(change).exp().first()
                };
                let total = b.totals.add(q);
                *total = *total * factor + sum;
                *b.factors.add(q) = factor;
            }
            // Weights of others are relative to the tile's own maximum.
            if others > 0 {
                for q in from..to {
                    let to = record.add(q * RECORDED_ROW);
                    let largest = self.largest::<V>(others + q);
                    let sum =
                        Self::weights::<V>(b.weights.row(others + q), largest, seen, to.add(self.tile.first));
                    self.note(to, largest, sum);
                }
            }
        }
    }
}

// Contract of all: as for `run`.
impl<const SCALED: bool> Soften<'_, SCALED> {
    /// Scales a row's logits, those that are not seen become -infinity, and gives the largest.
    #[inline(always)]
    unsafe fn largest<V: Vector>(&self, q: usize) -> f32 {
        let Tile { b, seen, scale, .. } = *self.tile;
        // SAFETY: the contract.
        unsafe {
            let row = b.weights.row(q);
            let scale = match SCALED {
                true => V::splat(scale * *self.query_steps.add(q)),
                false => V::splat(scale),
            };
            let mut largest = V::splat(f32::NEG_INFINITY);
            let mut e = 0;
            while e < seen {
                let mut logits = V::load(row.add(e)).mul(scale);
                if SCALED {
                    logits = logits.mul(V::load(self.key_scales.add(e)));
                }
                let logits = logits.first_or(seen - e, f32::NEG_INFINITY);
                logits.store(row.add(e));
                largest = largest.max(logits);
                e += V::LANES;
            }
            largest.largest()
        }
    }

    /// Weights of a row's logits relative to a maximum, and their sum.
    #[inline(always)]
    unsafe fn weights<V: Vector>(row: *const f32, largest: f32, seen: usize, to: *mut f32) -> f32 {
        // SAFETY: the contract.
        unsafe {
            let largest = V::splat(largest);
            let mut sum = V::zero();
            let mut e = 0;
            while e < seen {
                let weights = V::load(row.add(e)).sub(largest).exp();
                weights.store(to.add(e));
                sum = sum.add(weights);
                e += V::LANES;
            }
            sum.sum()
        }
    }

    /// What the tile's weights in a recorded row are relative to, and their sum.
    #[inline(always)]
    unsafe fn note(&self, row: *mut f32, maximum: f32, sum: f32) {
        // SAFETY: the contract.
        unsafe {
            *row.add(MAXIMA_AT + self.tile.first / TILE) = maximum;
            *row.add(SUMS_AT + self.tile.first / TILE) = sum;
        }
    }
}
