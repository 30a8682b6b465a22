//! Streaming: a state that stays on the device between calls.

use super::carry::carry;
use super::pack::PART;
use super::{Direction, Recurrent, RecurrentBuffers, RecurrentShape};
use crate::{Bound, Error};

/// Sequences that arrive bit by bit: the state of all layers stays on the device from one chunk of steps to the
/// next, be it one step long or many.
///
/// Chunks one after the other give the same bits as the whole sequence in one call of the same
/// [`Tier`](super::Tier). Nothing is submitted; the state is what it is after all that has been recorded, in
/// the order of recording. The state has two sides, of which a chunk reads one and writes the other.
#[derive(Debug)]
pub struct RecurrentSession {
    operation: Recurrent,
    batch: u32,
    sides: [wgpu::Buffer; 2],
    /// The side that the next chunk reads.
    side: usize,
}

/// The tensors of a chunk, as in [`RecurrentBuffers`].
#[derive(Debug, Clone, Copy)]
pub struct SessionBuffers<'a> {
    /// `[seq_len, batch, input_size]`, read.
    pub input: wgpu::BufferSlice<'a>,
    /// [`Recurrent::packed_size`] bytes, read.
    pub weights: wgpu::BufferSlice<'a>,
    /// `[batch]`, u32, read: how many steps of the chunk each sequence has; all of it if absent.
    pub lengths: Option<wgpu::BufferSlice<'a>>,
    /// `[seq_len, batch, state_size]`, written.
    pub output: wgpu::BufferSlice<'a>,
    /// [`Recurrent::scratch_size`] bytes of any content.
    pub scratch: wgpu::BufferSlice<'a>,
}

/// A chunk with its tensors, ready to be recorded as often as wanted: by a
/// [`RecurrentSession`], once for each chunk that has been written into `input`.
#[derive(Debug, Clone)]
pub struct SessionBound {
    /// Reading the one side, and the other.
    bounds: [Bound; 2],
}

impl Recurrent {
    /// A session of `batch` sequences, with a state of zeros.
    ///
    /// # Errors
    /// [`Error::Operand`] unless the direction is forward, since the reverse one starts at the end, and with
    /// dropout between layers, whose noise depends on the time; [`Error::Shape`], [`Error::Limit`].
    pub fn session(&self, batch: u32) -> Result<RecurrentSession, Error> {
        let refused = [
            (
                "direction",
                self.config.direction != Direction::Forward,
                "a session goes forward; the reverse direction starts at a sequence's end",
            ),
            (
                "dropout",
                self.config.has_dropout(),
                "a session does not know the time, on which the noise depends",
            ),
        ];
        for (name, refused, problem) in refused {
            if refused {
                return Err(Error::Operand { name, problem });
            }
        }
        let one = RecurrentShape {
            seq_len: 1,
            batch,
            seed: 0,
        };
        self.plan(one, super::Given::default())?;
        let config = self.config;
        let len = |width: u32| u64::from(config.num_layers) * u64::from(batch) * u64::from(width);
        let h = len(config.state_size()).next_multiple_of(PART);
        let size = 4 * (h + len(config.hidden_size)).max(PART);
        let allowed = self.context.device().limits().max_buffer_size;
        if size > allowed {
            return Err(Error::Limit {
                limit: "max_buffer_size",
                needed: size,
                allowed,
            });
        }
        // a new buffer holds zeros
        let side = |label| {
            self.context
                .device()
                .create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size,
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_SRC
                        | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
        };
        Ok(RecurrentSession {
            operation: self.clone(),
            batch,
            sides: [
                side("gatefold session, side 0"),
                side("gatefold session, side 1"),
            ],
            side: 0,
        })
    }
}

impl RecurrentSession {
    /// Sequences.
    pub fn batch(&self) -> u32 {
        self.batch
    }

    /// Binds the tensors of chunks of `seq_len` steps, for every later [`record`](Self::record).
    ///
    /// # Errors
    /// Those of [`Recurrent::bind`].
    pub fn bind(&self, seq_len: u32, buffers: SessionBuffers<'_>) -> Result<SessionBound, Error> {
        let shape = RecurrentShape {
            seq_len,
            batch: self.batch,
            seed: 0,
        };
        let one_way = |from: usize| {
            let ((h_0, c_0), (h_n, c_n)) = (self.parts(from), self.parts(1 - from));
            let all = RecurrentBuffers {
                h_0: Some(h_0),
                c_0,
                lengths: buffers.lengths,
                h_n: Some(h_n),
                c_n,
                ..RecurrentBuffers::new(
                    buffers.input,
                    buffers.weights,
                    buffers.output,
                    buffers.scratch,
                )
            };
            self.operation.bind(shape, all)
        };
        Ok(SessionBound {
            bounds: [one_way(0)?, one_way(1)?],
        })
    }

    /// Encodes the steps of a chunk, from the state that the chunk before has left.
    pub fn record(&mut self, pass: &mut wgpu::ComputePass<'_>, chunk: &SessionBound) {
        chunk.bounds[self.side].record(pass);
        self.side = 1 - self.side;
    }

    /// Encodes a new start, from the states given, `[num_layers, batch, state_size]` and, of an LSTM,
    /// `[num_layers, batch, hidden_size]`; from zeros where there is none.
    ///
    /// # Errors
    /// [`Error::Operand`] for a `c_0` of a cell that has none; those of
    /// [`Context::bind`](crate::Context::bind).
    pub fn start(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        h_0: Option<wgpu::BufferSlice<'_>>,
        c_0: Option<wgpu::BufferSlice<'_>>,
    ) -> Result<(), Error> {
        let config = self.operation.config;
        let has_c = config.cell.has_cell_state();
        if c_0.is_some() && !has_c {
            return Err(Error::Operand {
                name: "c_0",
                problem: "only an LSTM has a cell state",
            });
        }
        let rows = u64::from(config.num_layers) * u64::from(self.batch);
        if rows == 0 {
            return Ok(());
        }
        let part = |name, width: u32| Some((name, 0..rows * u64::from(width)));
        let (h, c) = (config.state_size(), config.hidden_size);
        let (to_h, to_c) = self.parts(self.side);
        let mut slices = vec![("h", to_h)];
        slices.extend(h_0.map(|slice| ("h_0", slice)));
        let from = h_0.and_then(|_| part("h_0", h));
        let mut dispatches = vec![carry([from, None], [part("h", h), None])];
        if let Some(to_c) = to_c {
            slices.push(("c", to_c));
            slices.extend(c_0.map(|slice| ("c_0", slice)));
            let from = c_0.and_then(|_| part("c_0", c));
            dispatches.push(carry([None, from], [None, part("c", c)]));
        }
        let context = &self.operation.context;
        context.bind_own(&dispatches, &slices)?.record(pass);
        Ok(())
    }

    /// The hidden state `[num_layers, batch, state_size]` and, of an LSTM, the cell state
    /// `[num_layers, batch, hidden_size]` after all that has been recorded: to be read by what is recorded
    /// next, until the next chunk but one.
    pub fn state(&self) -> (wgpu::BufferSlice<'_>, Option<wgpu::BufferSlice<'_>>) {
        self.parts(self.side)
    }

    fn parts(&self, side: usize) -> (wgpu::BufferSlice<'_>, Option<wgpu::BufferSlice<'_>>) {
        let config = self.operation.config;
        let rows = u64::from(config.num_layers) * u64::from(self.batch);
        let h = 4 * rows * u64::from(config.state_size());
        let c = h.next_multiple_of(4 * PART);
        let end = c + 4 * rows * u64::from(config.hidden_size);
        let buffer = &self.sides[side];
        // an empty slice cannot be made; no kernel runs for it
        let of_h = buffer.slice(..h.max(4));
        let of_c = (config.cell.has_cell_state()).then(|| buffer.slice(c..end.max(c + 4)));
        (of_h, of_c)
    }
}
