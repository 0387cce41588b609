use crate::error::{Error, at_least, plus, times};
use std::marker::PhantomData;
use std::ops::Range;

/// The query heads that share one KV head, for some tokens, read-only: `f32` of shape `[tokens, group, head_dim]`. Token t, head g
/// starts at `t * token_stride + g * head_dim`; in a packed `[T, num_heads * head_dim]` tensor the stride is `num_heads * head_dim`
/// and the slice starts at the first of the group's heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    data: &'a [f32],
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    tokens: usize,
    group: usize,
    head_dim: usize,
    token_stride: usize,
}

impl Shape {
    /// Numbers from the first to the last, both included; 0 without tokens.
    fn span(self) -> Result<usize, Error> {
        let token = times("floats of a token's heads", self.group, self.head_dim)?;
        at_least("token stride", token, self.token_stride)?;
        match self.tokens.checked_sub(1) {
            None => Ok(0),
            Some(last) => plus(
                "floats of all heads",
                times("floats of all heads", last, self.token_stride)?,
                token,
            ),
        }
    }

    fn sub_range(self, tokens: &Range<usize>) -> Result<Shape, Error> {
        at_least("end of the token range", tokens.start, tokens.end)?;
        crate::error::at_most("end of the token range", self.tokens, tokens.end)?;
        Ok(Shape {
            tokens: tokens.end - tokens.start,
            ..self
        })
    }
}

impl<'a> Heads<'a> {
    /// A view of the first `(tokens - 1) * token_stride + group * head_dim` numbers of `data`.
    ///
    /// # Errors
    /// When the slice is shorter than that or the stride less than `group * head_dim`.
    pub fn new(
        data: &'a [f32],
        tokens: usize,
        group: usize,
        head_dim: usize,
        token_stride: usize,
    ) -> Result<Self, Error> {
        let shape = Shape {
            tokens,
            group,
            head_dim,
            token_stride,
        };
        at_least("floats in the heads' slice", shape.span()?, data.len())?;
        Ok(Heads { data, shape })
    }

    /// The same heads of some of the tokens, counted from this view's first.
    ///
    /// # Errors
    /// When the range is not within `0..tokens`.
    pub fn tokens_in(&self, tokens: Range<usize>) -> Result<Heads<'a>, Error> {
        let shape = self.shape.sub_range(&tokens)?;
        let data = if shape.tokens == 0 {
            &[]
        } else {
            &self.data[tokens.start * shape.token_stride..]
        };
        Ok(Heads { data, shape })
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.shape.tokens
    }

    /// Query heads per token.
    pub fn group(&self) -> usize {
        self.shape.group
    }

    /// Numbers per head.
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// Token t's heads, `group * head_dim` numbers. t < tokens.
    pub(crate) fn token(&self, t: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(t * self.shape.token_stride)
    }
}

/// [`Heads`] to write to.
#[derive(Debug)]
pub struct HeadsMut<'a> {
    data: *mut f32,
    shape: Shape,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: like `&mut [f32]` of the heads' numbers, which is `Send` and `Sync`.
unsafe impl Send for HeadsMut<'_> {}
// SAFETY: as above; a shared reference gives no access to the numbers.
unsafe impl Sync for HeadsMut<'_> {}

impl<'a> HeadsMut<'a> {
    /// As [`Heads::new`], with a slice to write to.
    ///
    /// # Errors
    /// As [`Heads::new`].
    pub fn new(
        data: &'a mut [f32],
        tokens: usize,
        group: usize,
        head_dim: usize,
        token_stride: usize,
    ) -> Result<Self, Error> {
        let shape = Shape {
            tokens,
            group,
            head_dim,
            token_stride,
        };
        at_least("floats in the heads' slice", shape.span()?, data.len())?;
        Ok(HeadsMut {
            data: data.as_mut_ptr(),
            shape,
            lifetime: PhantomData,
        })
    }

    /// The heads at `data`, so that several KV heads can write their interleaved parts of one tensor in parallel.
    ///
    /// # Errors
    /// When the stride is less than `group * head_dim` or the span does not fit the address space.
    ///
    /// # Safety
    /// For `'a`, the `group * head_dim` numbers at `data + t * token_stride` of each token t are valid for writes, and nobody else
    /// reads or writes them. (The numbers between one token's heads and the next's are never touched.)
    pub unsafe fn from_raw(
        data: *mut f32,
        tokens: usize,
        group: usize,
        head_dim: usize,
        token_stride: usize,
    ) -> Result<Self, Error> {
        let shape = Shape {
            tokens,
            group,
            head_dim,
            token_stride,
        };
        shape.span()?;
        Ok(HeadsMut {
            data,
            shape,
            lifetime: PhantomData,
        })
    }

    /// The same heads of some of the tokens, counted from this view's first, borrowed from this view.
    ///
    /// # Errors
    /// When the range is not within `0..tokens`.
    pub fn tokens_in(&mut self, tokens: Range<usize>) -> Result<HeadsMut<'_>, Error> {
        let shape = self.shape.sub_range(&tokens)?;
        let data = if shape.tokens == 0 {
            self.data
        } else {
            self.data.wrapping_add(tokens.start * shape.token_stride)
        };
        Ok(HeadsMut {
            data,
            shape,
            lifetime: PhantomData,
        })
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.shape.tokens
    }

    /// Query heads per token.
    pub fn group(&self) -> usize {
        self.shape.group
    }

    /// Numbers per head.
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// Token t's heads, `group * head_dim` numbers. t < tokens.
    pub(crate) fn token(&self, t: usize) -> *mut f32 {
        self.data.wrapping_add(t * self.shape.token_stride)
    }
}
