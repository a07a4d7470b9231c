//! Taking over the tensors of a file.

use lowbit_models::Network;

use super::names::scales;
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
    let fit = Fit::new(file, network.graph()).map_err(WeightsError::Misfit)?;
    // A new classifier stays as it is, and what other programs' networks do not have.
    let kept = scales(network.graph());
    let is_kept = |path: &str| {
        let layer = path.rsplit_once('.').map(|(layer, _)| layer);
        kept.iter().any(|kept| kept == path)
            || fit.new_classifier.as_ref().is_some_and(|new| layer == Some(new.layer.as_str()))
    };
    let mut tensors: NamedTensors =
        state::tensors(network).into_iter().filter(|(path, _)| is_kept(path)).collect();
    for taken in &fit.taken {
        tensors.insert(taken.path.clone(), file.read(&taken.name)?);
    }
    Ok((tensors, fit))
}
