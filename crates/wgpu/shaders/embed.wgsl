// x = embed[token]. Workgroup (four columns a thread, token); this part of the embedding has rows FIRST_ROW and on.

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = row_token(id.y);
    if id.x >= GROUPS * 8u || token < FIRST_ROW || token >= FIRST_ROW + ROWS0 {
        return;
    }
    x[id.y * GROUPS * 8u + id.x] = four_m0(token - FIRST_ROW, id.x) * vectors[token];
}
