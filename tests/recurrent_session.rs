//! Streaming sessions: a sequence in chunks gives the bits of the whole, in every tier, variant and guise.

mod common;

use common::recurrent::{Case, SMALL, pack, run, variants};
use common::{Output, bits, gpu, guises};
use gatefold::{
    Cell, Direction, Gpu, Recurrent, RecurrentConfig, RecurrentShape, SessionBuffers, wgpu,
};

/// Steps of a chunk; they add up to those of [`SMALL`].
const CHUNKS: [u32; 5] = [1, 3, 0, 1, 4];

/// What is left of `lengths` for a chunk from `start` on.
fn lengths_within(lengths: &[u32], start: u32, steps: u32) -> Vec<u32> {
    let left = |&length: &u32| length.saturating_sub(start).min(steps);
    lengths.iter().map(left).collect()
}

fn read(gpu: &Gpu, slice: wgpu::BufferSlice<'_>) -> Vec<f32> {
    let copy = gpu.zeros("copy", slice.size()).unwrap();
    let mut encoder = gpu
        .context()
        .device()
        .create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(slice.buffer(), slice.offset(), &copy, 0, slice.size());
    gpu.queue().submit([encoder.finish()]);
    gpu.download(&copy).unwrap()
}

/// In chunks: output, h_n and, of an LSTM, c_n, as [`run`] has them of the whole.
fn streamed(gpu: &Gpu, case: &Case, config: RecurrentConfig) -> Vec<Vec<f32>> {
    let inputs = case.inputs();
    let op = Recurrent::new(gpu.context(), config).unwrap();
    let packed = pack(gpu, &op, &inputs);
    let scratch_size = op.scratch_size(RecurrentShape {
        seq_len: *CHUNKS.iter().max().unwrap(),
        ..case.shape()
    });
    let scratch = gpu.zeros("scratch", scratch_size.unwrap()).unwrap();
    let h_0 = gpu.upload("h_0", &inputs.h_0).unwrap();
    let c_0 = gpu.upload("c_0", &inputs.c_0).unwrap();
    let has_c = case.cell.has_cell_state();
    let mut session = op.session(case.batch).unwrap();
    // an earlier conversation, to be forgotten
    let mut twice = Vec::new();
    for _ in 0..2 {
        gpu.run(|pass| {
            session.start(
                pass,
                case.states.then(|| h_0.slice(..)),
                (case.states && has_c).then(|| c_0.slice(..)),
            )
        })
        .unwrap();
        let token = (case.batch * case.input_size) as usize;
        let width = case.batch as usize * case.problem().state_size();
        let (mut output, mut start) = (Vec::new(), 0);
        for steps in CHUNKS {
            let x = &inputs.input[start as usize * token..][..steps as usize * token];
            let x = gpu.upload("input", &config.element.words(x)).unwrap();
            let out = Output::new(gpu, steps as usize * width);
            let lengths = case.lengths.map(|all| lengths_within(all, start, steps));
            let lengths = lengths.map(|lengths| gpu.upload("lengths", &lengths).unwrap());
            let buffers = SessionBuffers {
                input: x.slice(..),
                weights: packed.slice(..),
                lengths: lengths.as_ref().map(|lengths| lengths.slice(..)),
                output: out.buffer.slice(..),
                scratch: scratch.slice(..),
            };
            let chunk = session.bind(steps, buffers).unwrap();
            gpu.run(|pass| {
                session.record(pass, &chunk);
                Ok(())
            })
            .unwrap();
            output.extend(out.read(gpu));
            start += steps;
        }
        let (h, c) = session.state();
        let mut results = vec![output, read(gpu, h)];
        results.extend(c.map(|c| read(gpu, c)));
        twice.push(results);
    }
    assert_eq!(twice[0], twice[1], "the second conversation differs");
    twice.remove(1)
}

#[test]
fn chunks_equal_the_whole_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    assert_eq!(CHUNKS.iter().sum::<u32>(), SMALL.seq_len);
    for (cell, proj_size, lengths, states) in [
        (Cell::RnnTanh, None, None, false),
        (Cell::Lstm, Some(5), None, true),
        (Cell::Lstm, None, Some(&[9, 0, 4][..]), true),
        (Cell::GruResetBefore, None, None, true),
        (Cell::Gru, None, Some(&[2, 9, 1][..]), false),
    ] {
        let case = Case {
            cell,
            proj_size,
            lengths,
            states,
            num_layers: 2,
            magnitude: 0.9,
            ..SMALL
        };
        for (guise, config, how) in variants(&guises(gpu), &case) {
            let whole = run(&guise, &case, config, &case.inputs());
            let streamed = streamed(&guise, &case, config);
            assert_eq!(whole.len(), streamed.len());
            for (whole, streamed) in whole.iter().zip(&streamed) {
                assert_eq!(bits(whole), bits(streamed), "{how}\n{case:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_streamed_is_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = |config| {
        let op = Recurrent::new(gpu.context(), config).unwrap();
        op.session(1).unwrap_err().to_string()
    };
    for direction in [Direction::Reverse, Direction::Bidirectional] {
        assert_eq!(
            refused(RecurrentConfig {
                direction,
                ..SMALL.config(None, None)
            }),
            "direction: a session goes forward; the reverse direction starts at a sequence's end"
        );
    }
    assert_eq!(
        refused(RecurrentConfig {
            dropout: 0.5,
            num_layers: 2,
            ..SMALL.config(None, None)
        }),
        "dropout: a session does not know the time, on which the noise depends"
    );
    let gru = RecurrentConfig {
        cell: Cell::Gru,
        ..SMALL.config(None, None)
    };
    let mut session = Recurrent::new(gpu.context(), gru)
        .unwrap()
        .session(1)
        .unwrap();
    let c_0 = gpu.zeros("c_0", 256).unwrap();
    let message = gpu
        .run(|pass| session.start(pass, None, Some(c_0.slice(..))))
        .unwrap_err();
    assert_eq!(message.to_string(), "c_0: only an LSTM has a cell state");
}
