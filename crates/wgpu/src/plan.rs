//! The program as dispatches.

use upg_format::{ModelConfig, TensorKind};
use upg_pdvm::{MachineError, Op, Program};

use crate::{
    coop,
    dispatch::{Dispatch, Grid, Shape, Work},
    gpu::{Gpu, Pipeline},
    load::{Matrix, Model},
    memory::Memory,
    shaders::{GEMM_TILE, Input, Linear, Output, Shader, Shaders},
};

/// Batches of up to this many tokens are multiplied token by token, weights decoded for each.
pub(crate) const FEW: usize = 4;
/// Rows of logits that are computed at a time.
pub(crate) const LOGITS: usize = 64;
/// Tokens that the device chooses one after the other before the host waits for them.
pub(crate) const CHOICES: usize = 8;

/// The program's dispatches.
#[derive(Default)]
pub(crate) struct Plan {
    /// Workgroups that the device runs at once.
    pub workgroups: usize,
    body: Vec<Work>,
    /// Run for the rows of logits only.
    head: Vec<Work>,
    /// Run where the device chooses.
    choice: Vec<Work>,
}

impl Plan {
    /// Records the program's layers.
    pub(crate) fn record_body(&self, pass: &mut wgpu::ComputePass<'_>, shape: Shape) {
        self.record(&self.body, pass, shape.tokens, shape);
    }

    fn record(&self, works: &[Work], pass: &mut wgpu::ComputePass<'_>, tokens: usize, shape: Shape) {
        for dispatch in works.iter().flat_map(|work| work.dispatches(tokens)) {
            dispatch.record(pass, tokens, shape, self.workgroups);
        }
    }

    /// Records the head, and the choice of a token where the device makes it.
    pub(crate) fn record_head(&self, pass: &mut wgpu::ComputePass<'_>, shape: Shape) {
        self.record(&self.head, pass, shape.logits, shape);
        if shape.chooses {
            self.record(&self.choice, pass, 1, shape);
        }
    }

    /// The most workgroups that a linear for one token has work for.
    pub(crate) fn largest_steps(&self) -> usize {
        self.body.iter().flat_map(|work| &work.few).map(Dispatch::steps).max().unwrap_or(0)
    }

    /// Records the linears of a few layers for one token, for measuring.
    pub(crate) fn record_linears(&self, pass: &mut wgpu::ComputePass<'_>) {
        let linears = self.body.iter().flat_map(|work| &work.few).filter(|dispatch| dispatch.steps() > 0);
        let shape = Shape::new(1, 1);
        linears.take(24).for_each(|dispatch| dispatch.record(pass, 1, shape, self.workgroups));
    }

    /// Labels of the dispatches of a batch of this shape, with what records each.
    pub(crate) fn each(
        &self,
        shape: Shape,
    ) -> impl Iterator<Item = (&str, impl Fn(&mut wgpu::ComputePass<'_>))> {
        let body = self.body.iter().map(move |work| (work, shape.tokens));
        let head = self.head.iter().map(move |work| (work, shape.logits));
        let choice = self.choice.iter().map(move |work| (work, usize::from(shape.chooses)));
        body.chain(head)
            .chain(choice)
            .filter(move |(_, tokens)| *tokens > 0)
            .flat_map(move |(work, tokens)| work.dispatches(tokens).iter().map(move |d| (d, tokens)))
            .filter(move |(dispatch, _)| !dispatch.is_left_out(shape))
            .map(move |(dispatch, tokens)| {
                (dispatch.label.as_str(), move |pass: &mut wgpu::ComputePass<'_>| {
                    dispatch.record(pass, tokens, shape, self.workgroups);
                })
            })
    }

    /// Dispatches of a batch of this shape.
    pub(crate) fn dispatches(&self, shape: Shape) -> usize {
        self.each(shape).count()
    }
}

/// Lowers a program to dispatches.
pub(crate) struct Lowering<'a> {
    pub gpu: &'a Gpu,
    pub model: &'a Model,
    pub memory: &'a Memory,
    pub shaders: &'a Shaders,
    pub config: &'a ModelConfig,
}

impl Lowering<'_> {
    /// # Errors
    /// A shader that the driver refuses; a matrix that is missing.
    pub(crate) fn plan(&self, program: &Program) -> Result<Plan, MachineError> {
        let mut plan = Plan::default();
        for op in &program.ops {
            match op {
                Op::NormHead => self.lower(*op, &mut plan.head)?,
                _ => self.lower(*op, &mut plan.body)?,
            }
        }
        let Memory { step, logits, chosen, .. } = self.memory;
        plan.choice.push(self.work(&self.shaders.likeliest(), &[step, logits, chosen], Grid::Tokens(1))?);
        Ok(plan)
    }

    fn lower(&self, op: Op, works: &mut Vec<Work>) -> Result<(), MachineError> {
        use TensorKind::{Down, Embed, FinalNorm, Gate, Head, K, KBias, O, Q, QBias, Up, V, VBias};
        let Memory { x, q, partial, weights, attended, h, rows, logits, step, .. } = self.memory;
        let layer = op.layer().unwrap_or(0);
        let matrix = |kind| self.model.matrix(layer, kind);
        match op {
            Op::Embed => {
                let matrix = matrix(Embed)?;
                let scales = self.gpu.upload("the embedding's scales", &matrix.scales)?;
                for (part, buffer) in matrix.parts.iter().enumerate() {
                    let (first, rows) = matrix.part(part);
                    let shader = self.shaders.embed(matrix.code, first, rows);
                    let grid = Grid::Tokens((self.config.hidden / 4).div_ceil(Shaders::EMBED_THREADS));
                    works.push(self.work(&shader, &[step, buffer, &scales, x], grid)?);
                }
            }
            Op::NormQkvRope { layer } => {
                let biases = if self.config.qkv_bias {
                    [QBias, KBias, VBias]
                        .map(|kind| self.model.vector(layer, kind))
                        .into_iter()
                        .collect::<Result<_, _>>()?
                } else {
                    vec![]
                };
                let output = Output::Qkv { biases: self.config.qkv_bias };
                let matrices = [matrix(Q)?, matrix(K)?, matrix(V)?];
                self.linear(
                    works,
                    &matrices,
                    &biases,
                    (Input::Norm, x),
                    (output, &[q, &self.memory.caches[layer]]),
                )?;
            }
            Op::Attend { layer } => {
                let cache = &self.memory.caches[layer];
                let groups = self.config.heads / self.shaders.share();
                let buffers = [step, q, cache, partial, weights, attended];
                let few = self.dispatch(&self.shaders.attend(), &buffers, Grid::Splits(groups))?;
                let buffers = [step, q, cache, attended];
                let many = self.dispatch(&self.shaders.attend_block(), &buffers, Grid::Blocks(groups))?;
                works.push(Work { few: vec![few], many: Some(vec![many]) });
                let grid = Grid::Joins((self.config.q_width() / 2).div_ceil(Shaders::JOIN_THREADS));
                works.push(self.work(&self.shaders.join(), &[step, partial, weights, attended], grid)?);
            }
            Op::OutAdd { .. } => {
                self.linear(works, &[matrix(O)?], &[], (Input::Plain, attended), (Output::Add, &[x]))?;
            }
            Op::NormGateUp { .. } => {
                self.linear(
                    works,
                    &[matrix(Gate)?, matrix(Up)?],
                    &[],
                    (Input::Norm, x),
                    (Output::SwiGlu, &[h]),
                )?;
            }
            Op::DownAdd { .. } => {
                let mut input = Input::Plain;
                if let Some(shader) = self.shaders.mlp_hadamard() {
                    let grid = Grid::Tokens(self.config.mlp / self.shaders.mlp_block());
                    let dispatch = || Ok::<_, MachineError>(vec![self.dispatch(&shader, &[h], grid)?]);
                    let few = if self.shaders.lanes_transform() {
                        input = Input::Hadamard;
                        vec![]
                    } else {
                        dispatch()?
                    };
                    works.push(Work { few, many: Some(dispatch()?) });
                }
                self.linear(works, &[matrix(Down)?], &[], (input, h), (Output::Add, &[x]))?;
            }
            Op::NormHead => {
                let tied = self.config.tied_embeddings;
                let gain: &[f32] = if tied { self.model.vector(0, FinalNorm)? } else { &[1.0] };
                let gain = self.gpu.upload("the final norm's gain", gain)?;
                works.push(self.work(
                    &self.shaders.head_input(),
                    &[step, x, &gain, rows],
                    Grid::Tokens(1),
                )?);
                let head = matrix(if tied { Embed } else { Head })?;
                self.linear(works, &[head], &[], (Input::Plain, rows), (Output::Logits, &[logits]))?;
            }
        }
        Ok(())
    }

    fn work(&self, shader: &Shader, buffers: &[&wgpu::Buffer], grid: Grid) -> Result<Work, MachineError> {
        Ok(Work { few: vec![self.dispatch(shader, buffers, grid)?], many: None })
    }

    fn dispatch(
        &self,
        shader: &Shader,
        buffers: &[&wgpu::Buffer],
        grid: Grid,
    ) -> Result<Dispatch, MachineError> {
        let Pipeline { pipeline, .. } = &self.gpu.pipeline(shader)?;
        let bindings = self.gpu.bind(&self.gpu.pipeline(shader)?, buffers)?;
        Ok(Dispatch { label: shader.label.clone(), pipeline: pipeline.clone(), bindings, grid })
    }

    /// A linear, a work a part where its matrices do not fit a binding.
    fn linear(
        &self,
        works: &mut Vec<Work>,
        matrices: &[&Matrix],
        biases: &[&[f32]],
        (input, from): (Input, &wgpu::Buffer),
        (output, to): (Output, &[&wgpu::Buffer]),
    ) -> Result<(), MachineError> {
        let part_rows = matrices.iter().map(|m| m.part_rows).min().unwrap_or(0);
        if matrices
            .iter()
            .any(|m| m.parts.len() > 1 && (m.part_rows != part_rows || matches!(output, Output::Qkv { .. })))
        {
            return Err(MachineError::Unsupported(format!(
                "a matrix of this model does not fit this adapter's bindings of {} bytes \
                 (max_storage_buffer_binding_size) beside the others it is multiplied with: compress the model first, or \
                 use --device cpu",
                self.gpu.binding_bytes()
            )));
        }
        let vectors = self.gpu.upload("scales", &vectors(matrices, biases))?;
        for part in 0..matrices[0].parts.len() {
            let (first, _) = matrices[0].part(part);
            let linear = Linear {
                cols: matrices[0].cols,
                matrices: matrices.iter().map(|m| (m.code, m.part(part).1)).collect(),
                part: (first, matrices[0].rows),
                input,
                output,
            };
            let mut buffers = vec![&self.memory.step, from];
            buffers.extend(matrices.iter().map(|m| &m.parts[part]));
            buffers.push(&vectors);
            buffers.extend(to);
            if self.shaders.is_plain() {
                let grid = Grid::Tokens(linear.gemm_tiles().div_ceil(2));
                works.push(self.work(&self.shaders.plain(&linear), &buffers, grid)?);
                continue;
            }
            let few = self.dispatch(
                &self.shaders.gemv(&linear),
                &buffers,
                Grid::Steps(self.shaders.gemv_workgroups(&linear)),
            )?;
            let linear = linear.transformed();
            let many = if self.shaders.by_matrices(&linear) {
                self.by_matrices(&linear, from, &buffers)?
            } else {
                let grid = Grid::Tiles(linear.gemm_tiles(), GEMM_TILE);
                vec![self.dispatch(&self.shaders.gemm(&linear), &buffers, grid)?]
            };
            works.push(Work { few: vec![few], many: Some(many) });
        }
        Ok(())
    }

    /// A linear's dispatches for many tokens by cooperative matrices; `buffers` are those of its other shaders.
    fn by_matrices(
        &self,
        linear: &Linear,
        from: &wgpu::Buffer,
        buffers: &[&wgpu::Buffer],
    ) -> Result<Vec<Dispatch>, MachineError> {
        let Memory { packed, packed_scales, .. } = self.memory;
        let pack =
            self.dispatch(&self.shaders.pack(linear), &[from, packed, packed_scales], Grid::Tokens(1))?;
        let mut buffers = buffers.to_vec();
        buffers[1] = packed;
        buffers.insert(2, packed_scales);
        let grid = Grid::Tiles(linear.tiles_of(coop::TILE), coop::TILE);
        Ok(vec![pack, self.dispatch(&self.shaders.gemm_by_matrices(linear), &buffers, grid)?])
    }
}

/// The scales of all matrices and then the biases, each padded to whole pairs.
fn vectors(matrices: &[&Matrix], biases: &[&[f32]]) -> Vec<f32> {
    let mut all = Vec::new();
    for vector in matrices.iter().map(|m| m.scales.as_slice()).chain(biases.iter().copied()) {
        all.extend_from_slice(vector);
        all.resize(all.len().next_multiple_of(2), 0.0);
    }
    all
}
