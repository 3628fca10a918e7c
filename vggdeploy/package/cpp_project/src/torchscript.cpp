// LibTorch: the TorchScript variant.
#include <ATen/Parallel.h>
#include <torch/script.h>

#include "image.hpp"
#include "model.hpp"

namespace {

class TorchScript final : public Classifier {
public:
    TorchScript(const Model& model, const std::string& device, int threads)
        : device_(device == "cuda" ? torch::kCUDA : torch::kCPU), side_(model.crop), channels_(model.channels),
          output_(static_cast<std::size_t>(model.output_index)) {
        if (threads > 0) at::set_num_threads(threads);
        at::globalContext().setAllowTF32CuDNN(false);  // FP32 stays FP32 on a GPU
        module_ = torch::jit::load(model.file, device_);
        module_.eval();
    }

    std::vector<float> run(const std::vector<std::uint8_t>& image) override {
        const c10::InferenceMode guard;
        // from_blob borrows the pixels, which outlive the call.
        const auto pixels = torch::from_blob(const_cast<std::uint8_t*>(image.data()), {1, side_, side_, channels_}, torch::kUInt8);
        const c10::IValue found = module_.forward({pixels.to(device_)});
        const torch::Tensor scores =
            (found.isTuple() ? found.toTupleRef().elements().at(output_).toTensor() : found.toTensor()).to(torch::kCPU).contiguous();
        return {scores.data_ptr<float>(), scores.data_ptr<float>() + scores.numel()};
    }

private:
    torch::Device device_;
    std::int64_t side_, channels_;
    std::size_t output_;
    torch::jit::Module module_;
};

}  // namespace

std::unique_ptr<Classifier> open_classifier(const Model& model, const std::string& device, int threads) {
    return std::make_unique<TorchScript>(model, device, threads);
}
