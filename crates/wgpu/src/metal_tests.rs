//! No Apple computer runs these tests: what can be checked without one is. Every shader is lowered to Metal's language as
//! wgpu does it, and held to Metal's limits.

use naga::{
    AddressSpace,
    back::msl,
    proc::Layouter,
    valid::{Capabilities, ModuleInfo, ValidationFlags, Validator},
};
use upg_codec::Bits;
use upg_format::ModelConfig;
use upg_pdvm::{MachineOptions, Weights as _, conformance::tiny_models, synthetic};

use crate::{
    code::{Arithmetic, Code},
    gemm::Cells,
    shaders::{Input, Linear, Output, Shader, Shaders},
    step::StepLayout,
    target::{Subgroups, Target},
};

/// Of every Metal GPU: Apple's feature set tables.
const THREADGROUP_BYTES: u32 = 32 << 10;
/// Storage buffers that wgpu promises on every Metal version.
const BUFFERS: usize = 8;
/// Metal 2.4 is macOS 12's, the oldest that wgpu's users meet; 4.0 the newest that wgpu targets.
const VERSIONS: [(u8, u8); 5] = [(2, 4), (3, 0), (3, 1), (3, 2), (4, 0)];

/// Every shader of a model of this configuration whose matrices have these codes in turn.
fn shaders(config: &ModelConfig, target: Target, codes: &[Code]) -> Vec<Shader> {
    let (shaders, linears) = linears(config, target, codes);
    let mut all = vec![
        shaders.embed(codes[0], 0, config.vocab),
        shaders.attend(),
        shaders.attend_block(),
        shaders.join(),
        shaders.likeliest(),
        shaders.head_input(),
    ];
    all.extend(shaders.mlp_hadamard());
    for linear in linears {
        all.push(shaders.gemv(&linear));
        let linear = linear.transformed();
        all.extend([shaders.gemm(&linear), shaders.plain(&linear)]);
    }
    all
}

/// What makes the shaders of a model, and its linears.
fn linears(config: &ModelConfig, target: Target, codes: &[Code]) -> (Shaders, [Linear; 5]) {
    let options = MachineOptions { context: 168.min(config.context), sequences: 3, ..Default::default() };
    let shaders = Shaders::new(config, target, &StepLayout::new(config, &options, 64));
    let code = |i: usize| codes[i % codes.len()];
    let linear = |cols, rows: &[usize], input, output| Linear {
        cols,
        matrices: rows.iter().enumerate().map(|(i, rows)| (code(i), *rows)).collect(),
        part: (0, rows[0]),
        input,
        output,
    };
    let ModelConfig { hidden, mlp, vocab, .. } = *config;
    let (q, kv) = (config.q_width(), config.kv_width());
    let transforms = shaders.mlp_hadamard().is_some() && shaders.lanes_transform();
    let down = if transforms { Input::Hadamard } else { Input::Plain };
    let linears = [
        linear(hidden, &[q, kv, kv], Input::Norm, Output::Qkv { biases: config.qkv_bias }),
        linear(q, &[hidden], Input::Plain, Output::Add),
        linear(hidden, &[mlp, mlp], Input::Norm, Output::SwiGlu),
        linear(mlp, &[hidden], down, Output::Add),
        linear(hidden, &[vocab], Input::Plain, Output::Logits),
    ];
    (shaders, linears)
}

/// Parses and validates a shader, for adapters with subgroups and packed f16 and nothing else: 64-bit types are refused.
fn validate(shader: &Shader) -> (naga::Module, ModuleInfo) {
    validate_with(shader, Capabilities::empty())
}

fn validate_with(shader: &Shader, more: Capabilities) -> (naga::Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(&shader.source)
        .unwrap_or_else(|error| panic!("{}: {}", shader.label, error.emit_to_string(&shader.source)));
    let info = Validator::new(
        ValidationFlags::all(),
        Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32 | more,
    )
    .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
    .subgroup_operations(naga::valid::SubgroupOperationSet::all())
    .validate(&module)
    .unwrap_or_else(|error| panic!("{}: {}", shader.label, error.emit_to_string(&shader.source)));
    (module, info)
}

fn threadgroup_bytes(module: &naga::Module) -> u32 {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).expect("sizes of types");
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
    shared.map(|(_, v)| layouter[v.ty].size.next_multiple_of(16)).sum()
}

/// Lowers to Metal's language with wgpu's bindings: buffer i in slot i, sizes of arrays behind them.
fn lower(module: &naga::Module, info: &ModuleInfo, shader: &Shader, version: (u8, u8)) -> String {
    let mut resources = msl::EntryPointResources::default();
    for (binding, writes) in shader.writes.iter().enumerate() {
        resources.resources.insert(
            naga::ResourceBinding { group: 0, binding: binding as u32 },
            msl::BindTarget { buffer: Some(binding as u8), mutable: *writes, ..Default::default() },
        );
    }
    resources.sizes_buffer = Some(shader.writes.len() as u8);
    let options = msl::Options {
        lang_version: version,
        per_entry_point_map: [("main".to_owned(), resources)].into(),
        fake_missing_bindings: false,
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let (text, translated) = msl::write_string(module, info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|error| panic!("{} for Metal {version:?}: {error}", shader.label));
    assert!(translated.entry_point_names.iter().all(Result::is_ok), "{}: {translated:?}", shader.label);
    text
}

#[test]
fn every_shader_lowers_to_metal_within_its_limits() {
    let all_codes: Vec<Code> = Bits::ALL.map(Code::T8).into_iter().chain([Code::F32]).collect();
    let metal = Target {
        subgroups: Subgroups::Fixed(32),
        arithmetic: Arithmetic::Float,
        copies: 16,
        most_threads: 1024,
        teams: false,
        matrices: false,
        cells: Cells::USUAL,
        workgroup_bytes: 32 << 10,
        plain: false,
    };
    let targets = [
        metal,
        Target { subgroups: Subgroups::None, ..metal },
        Target { subgroups: Subgroups::Varying { smallest: 4, largest: 64 }, ..metal },
        Target { arithmetic: Arithmetic::Packed, ..metal },
    ];
    let mut configs: Vec<ModelConfig> = tiny_models().iter().map(|(_, m)| m.config().clone()).collect();
    configs.extend([synthetic::phi4(), ModelConfig { tied_embeddings: true, ..synthetic::phi4() }]);
    let mut lowered = 0;
    for (i, config) in configs.iter().enumerate() {
        // Every code alone and different ones together, each with some configuration.
        let codes = [&all_codes[i % all_codes.len()..][..1], &all_codes[i % 5..][..3]];
        for (target, codes) in targets.iter().flat_map(|target| codes.map(|codes| (target, codes))) {
            for shader in shaders(config, *target, codes) {
                let (module, info) = validate(&shader);
                let bytes = threadgroup_bytes(&module);
                assert!(bytes <= THREADGROUP_BYTES, "{}: {bytes} bytes of threadgroup memory", shader.label);
                assert!(shader.writes.len() <= BUFFERS, "{}: {} buffers", shader.label, shader.writes.len());
                let version = VERSIONS[lowered % VERSIONS.len()];
                let text = lower(&module, &info, &shader, version);
                assert!(text.contains("kernel void") && !text.contains("double"), "{}", shader.label);
                lowered += 1;
            }
        }
    }
    assert!(lowered > 1000, "{lowered} shaders");
}

#[test]
fn shaders_for_large_cards_are_valid() {
    let target = Target {
        subgroups: Subgroups::Fixed(32),
        arithmetic: Arithmetic::Packed,
        copies: 32,
        most_threads: 1024,
        teams: true,
        matrices: true,
        cells: Cells::USUAL,
        workgroup_bytes: 48 << 10,
        plain: false,
    };
    let needed = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
    let mut valid = 0;
    for codes in [&[Bits::B3][..], &[Bits::B4], &[Bits::B8, Bits::B3], &[Bits::B3, Bits::B3, Bits::B4]] {
        let codes: Vec<Code> = codes.iter().copied().map(Code::T8).collect();
        let (shaders, linears) = linears(&synthetic::phi4(), target, &codes);
        for linear in linears.clone().map(Linear::transformed) {
            if !shaders.by_matrices(&linear) {
                continue;
            }
            validate(&shaders.pack(&linear));
            let (module, _) = validate_with(&shaders.gemm_by_matrices(&linear), needed);
            let bytes = threadgroup_bytes(&module) as usize;
            assert!(bytes <= target.workgroup_bytes, "{bytes} bytes of workgroup memory");
            valid += 1;
        }
        for linear in &linears {
            let bytes = threadgroup_bytes(&validate(&shaders.gemv(linear)).0) as usize;
            assert!(bytes <= target.workgroup_bytes, "{bytes} bytes of workgroup memory");
        }
    }
    assert!(valid >= 15, "{valid} linears");
}
