//! Each refusal and each warning, by table.
