//! The autoencoder: two layers down to a few numbers, two layers up again.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::tanh;
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;
use rand::rngs::StdRng;

use super::{Config, LAYERS, SENSORS};
use crate::LoadError;
use crate::safetensors::to_bytes;

/// A dense layer's numbers: the matrix by rows of `[in, out]`, and the bias.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    pub(super) matrix: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// All layers' numbers, apart from any device.
pub(super) type Layers = [Layer; LAYERS];

const NAMES: [&str; LAYERS] = ["encoder.0", "encoder.1", "decoder.0", "decoder.1"];

/// The network on a device.
#[derive(Module, Debug)]
pub(super) struct Net {
    encoder: [Linear; 2],
    decoder: [Linear; 2],
}

/// `[in, out]` of each layer.
fn shapes(config: &Config) -> [[usize; 2]; LAYERS] {
    let (input, hidden, code) = (config.window * SENSORS, config.hidden, config.code);
    [[input, hidden], [hidden, code], [code, hidden], [hidden, input]]
}

impl Net {
    pub(super) fn new(config: &Config, layers: &Layers, device: &Device) -> Self {
        let shapes = shapes(config);
        let linear = |n: usize| {
            let [_, width] = shapes[n];
            let matrix = TensorData::new(layers[n].matrix.clone(), shapes[n]);
            let bias = TensorData::new(layers[n].bias.clone(), [width]);
            Linear {
                weight: Param::from_tensor(Tensor::from_data(matrix, device)),
                bias: Some(Param::from_tensor(Tensor::from_data(bias, device))),
            }
        };
        Self { encoder: [linear(0), linear(1)], decoder: [linear(2), linear(3)] }
    }

    /// Draws each row of windows again from what little it keeps of it.
    pub(super) fn forward(&self, windows: Tensor<2>) -> Tensor<2> {
        let hidden = tanh(self.encoder[0].forward(windows));
        let code = self.encoder[1].forward(hidden);
        self.decoder[1].forward(tanh(self.decoder[0].forward(code)))
    }

    /// The numbers, or why they cannot be had.
    pub(super) fn layers(&self) -> Result<Layers, String> {
        let layer = |linear: &Linear| {
            let read = |data: TensorData| data.try_into_vec::<f32>().map_err(|e| e.to_string());
            let bias = linear.bias.as_ref().ok_or("a layer without bias")?;
            Ok::<_, String>(Layer {
                matrix: read(linear.weight.val().into_data())?,
                bias: read(bias.val().into_data())?,
            })
        };
        let [down, code] = &self.encoder;
        let [up, out] = &self.decoder;
        Ok([layer(down)?, layer(code)?, layer(up)?, layer(out)?])
    }
}

/// Fresh numbers: uniform, as wide as keeps the variance from layer to layer.
pub(super) fn random(config: &Config, rng: &mut StdRng) -> Layers {
    shapes(config).map(|[input, output]| {
        let limit = (6.0 / (input + output) as f32).sqrt();
        let matrix = (0..input * output).map(|_| rng.random_range(-limit..limit)).collect();
        Layer { matrix, bias: vec![0.0; output] }
    })
}

/// Reads the numbers of a stored network; `read` gives those of a tensor, which has this shape.
pub(super) fn read(
    config: &Config,
    read: impl Fn(&str, &[usize]) -> Result<Vec<f32>, LoadError>,
) -> Result<Layers, LoadError> {
    let mut layers = Vec::with_capacity(LAYERS);
    for (name, shape) in NAMES.iter().zip(shapes(config)) {
        layers.push(Layer {
            matrix: read(&format!("{name}.weight"), &shape)?,
            bias: read(&format!("{name}.bias"), &shape[1..])?,
        });
    }
    Ok(layers.try_into().expect("as many as there are names"))
}

/// The numbers as a safetensors file.
pub(super) fn write(config: &Config, layers: &Layers) -> Vec<u8> {
    let mut tensors = Vec::new();
    for ((name, shape), layer) in NAMES.iter().zip(shapes(config)).zip(layers) {
        tensors.push((format!("{name}.weight"), shape.to_vec(), layer.matrix.clone()));
        tensors.push((format!("{name}.bias"), shape[1..].to_vec(), layer.bias.clone()));
    }
    to_bytes(&tensors)
}
