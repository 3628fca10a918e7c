# LibTorch: the directory of the Python package torch, or of PyTorch's C++ download. Its own package file is not used: for
# a build with CUDA that one insists on a CUDA toolkit, which a program on the CPU does not need.
set(TORCH_ROOT "" CACHE PATH "python -c 'import torch; print(torch.__path__[0])'")
option(WITH_CUDA "Link LibTorch's CUDA part, for --device cuda" OFF)

find_path(TORCH_INCLUDE torch/script.h HINTS ${TORCH_ROOT}/include NO_DEFAULT_PATH)
find_library(TORCH_CPU_LIBRARY torch_cpu HINTS ${TORCH_ROOT}/lib NO_DEFAULT_PATH)
find_library(C10_LIBRARY c10 HINTS ${TORCH_ROOT}/lib NO_DEFAULT_PATH)
if(NOT TORCH_INCLUDE OR NOT TORCH_CPU_LIBRARY OR NOT C10_LIBRARY)
  message(FATAL_ERROR "LibTorch was not found: give -DTORCH_ROOT=DIR, the directory with its include/ and lib/")
endif()

target_sources(classify PRIVATE src/torchscript.cpp)
target_include_directories(classify SYSTEM PRIVATE ${TORCH_INCLUDE} ${TORCH_INCLUDE}/torch/csrc/api/include)
target_link_libraries(classify PRIVATE ${TORCH_CPU_LIBRARY} ${C10_LIBRARY})
if(WITH_CUDA)
  find_library(TORCH_CUDA_LIBRARY torch_cuda HINTS ${TORCH_ROOT}/lib NO_DEFAULT_PATH REQUIRED)
  # Nothing calls into it by name; it registers itself when it is loaded.
  target_link_options(classify PRIVATE "-Wl,--no-as-needed,${TORCH_CUDA_LIBRARY},--as-needed")
endif()
set_target_properties(classify PROPERTIES BUILD_RPATH ${TORCH_ROOT}/lib INSTALL_RPATH ${TORCH_ROOT}/lib)
