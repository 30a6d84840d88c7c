// A linear's input as f16 for cooperative matrices: x = NORM(x) by a scale of its own for each token, so that nothing
// overflows. Workgroup (token).

var<workgroup> most_of: array<f32, THREADS>;
var<workgroup> squares_of: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let n = wg.y;
    let at0 = n * GROUPS * 8u;
    var most = 0.0;
    var squares = 0.0;
    for (var i = t; i < GROUPS * 8u; i += THREADS) {
        let v = input[at0 + i];
        let a = abs(v);
        most = max(most, max(max(a.x, a.y), max(a.z, a.w)));
        squares += dot(v, v);
    }
    most_of[t] = most;
    squares_of[t] = squares;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if t < half {
            most_of[t] = max(most_of[t], most_of[t + half]);
            squares_of[t] += squares_of[t + half];
        }
    }
    workgroupBarrier();
    most = most_of[0];
    let inverse = select(0.0, 1024.0 / most, most > 1e-30);
    for (var i = t; i < GROUPS * 8u; i += THREADS) {
        let v = input[at0 + i] * inverse;
        packed[at0 + i] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
    }
    if t == 0u {
        packed_scales[n] = most / 1024.0 * norm_scale(squares_of[0]);
    }
}
