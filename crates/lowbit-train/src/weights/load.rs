//! Taking over the tensors of a file.

use lowbit_models::Network;

use super::{Fit, WeightsError, WeightsFile};
use crate::state::{self, NamedTensors};

/// `network` with the weights and statistics of `file`, and which these are. Quantizers stay as they are, and so does a classifier
/// for another number of classes.
///
/// # Errors
/// [`WeightsError`] if the file is not of this network, or not of finite real numbers.
pub fn load(file: &WeightsFile, network: Network) -> Result<(Network, Fit), WeightsError> {
    let (tensors, fit) = tensors_for(file, &network)?;
    let network = state::load_weights(network, tensors).expect("invariant: the tensors are the network's");
    Ok((network, fit))
}

/// The tensors that `network` is to have, without those of quantizers.
pub(crate) fn tensors_for(
    file: &WeightsFile,
    network: &Network,
) -> Result<(NamedTensors, Fit), WeightsError> {
    let fit = Fit::new(file, network.graph()).map_err(|misfit| WeightsError::Misfit(Box::new(misfit)))?;
    let mut tensors = match &fit.new_classifier {
        Some(new) => {
            let is_of_it = |path: &str| path.rsplit_once('.').is_some_and(|(layer, _)| layer == new.layer);
            state::tensors(network).into_iter().filter(|(path, _)| is_of_it(path)).collect()
        }
        None => NamedTensors::new(),
    };
    for taken in &fit.taken {
        tensors.insert(taken.path.clone(), file.read(&taken.name)?);
    }
    Ok((tensors, fit))
}
