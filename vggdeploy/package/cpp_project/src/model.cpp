#include "model.hpp"

#include <fstream>
#include <map>

#include "image.hpp"

namespace {

using Settings = std::map<std::string, std::string>;

Settings read_settings(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw Error(path + " cannot be read");
    Settings found;
    for (std::string line; std::getline(file, line);) {
        const auto space = line.find(' ');
        if (space != std::string::npos) found[line.substr(0, space)] = line.substr(space + 1);
    }
    return found;
}

std::string text(const Settings& settings, const std::string& name) {
    const auto found = settings.find(name);
    if (found == settings.end()) throw Error("model.txt does not say " + name);
    return found->second;
}

int number(const Settings& settings, const std::string& name) {
    try {
        return std::stoi(text(settings, name));
    } catch (const std::logic_error&) {
        throw Error("model.txt has no number for " + name);
    }
}

}  // namespace

Model read_model(const std::string& directory) {
    const Settings settings = read_settings(directory + "/model.txt");
    Model model;
    model.file = directory + "/" + text(settings, "file");
    model.input = text(settings, "input");
    model.output = text(settings, "output");
    model.output_index = number(settings, "output_index");
    model.probabilities = model.output == "probabilities";
    model.classes = number(settings, "classes");
    model.channels = number(settings, "channels");
    model.resize = number(settings, "resize");
    model.crop = number(settings, "crop");
    model.interpolation = text(settings, "interpolation");
    model.tall_first = number(settings, "tall_first") != 0;
    if (model.crop < 1 || model.resize < model.crop || (model.channels != 1 && model.channels != 3) || model.classes < 1)
        throw Error("model.txt makes no sense");
    std::ifstream labels(directory + "/labels.txt");
    for (std::string line; std::getline(labels, line);) model.labels.push_back(line);
    if (!model.labels.empty() && model.labels.size() != static_cast<std::size_t>(model.classes))
        throw Error("labels.txt has another number of lines than the model has classes");
    return model;
}
