#include "kernel_option.h"

#include <filesystem>

#include "input.h"
#include "progress.h"

namespace continuo::cli {

using state::Result;

namespace {

constexpr std::size_t kFileMax = std::size_t{1} << 30;

}  // namespace

void add_kernel_options(CLI::App& command, KernelOptions& options) {
    command.add_option("--kernel", options.kernel, "The kernel's file")->type_name("PATH");
    command.add_option("--initrd", options.initrd, "Its initramfs")->type_name("PATH");
    command.add_option("--append", options.append, "Its command line")->type_name("TEXT");
}

Result<std::optional<vmm::GuestKernel>> read_kernel(const KernelOptions& options) {
    if (options.kernel.empty()) {
        if (options.initrd.empty() && options.append.empty()) return std::nullopt;
        return state::fail(state::ErrorCode::kInvalidArgument, "command line",
                           "--initrd and --append are a kernel's", "Give --kernel too");
    }
    vmm::GuestKernel kernel;
    auto image = read_file(options.kernel, kFileMax);
    if (!image) return tl::unexpected(std::move(image.error()));
    kernel.image = std::move(image->bytes);
    kernel.name = std::filesystem::path{options.kernel}.filename();
    kernel.command_line = options.append;
    if (options.initrd.empty()) return kernel;
    auto initrd = read_file(options.initrd, kFileMax);
    if (!initrd) return tl::unexpected(std::move(initrd.error()));
    kernel.initrd = std::move(initrd->bytes);
    return kernel;
}

Result<std::unique_ptr<vmm::VirtualMachine>> boot_kernel(const LocalHost& host,
                                                         const vmm::VmConfig& config,
                                                         const std::optional<vmm::CpuModel>& model,
                                                         const vmm::GuestKernel& kernel) {
    auto machine = model ? vmm::VirtualMachine::create(host.system, config, *model)
                         : vmm::VirtualMachine::create(host.system, config);
    if (!machine) return machine;
    const auto format = vmm::load_guest_kernel(**machine, kernel);
    if (!format) return tl::unexpected(format.error());
    if (auto told = vmm::start_vmclock(**machine, host.findings); !told)
        return tl::unexpected(std::move(told.error()));
    if (auto running = (*machine)->resume(); !running)
        return tl::unexpected(std::move(running.error()));
    progress("{}, {}, runs on {} vCPUs", kernel.name, vmm::name(*format), config.vcpus);
    return machine;
}

std::function<Result<std::unique_ptr<vmm::VirtualMachine>>()> start_again_by(
    const LocalHost& host, vmm::VirtualMachine& machine, std::optional<vmm::GuestKernel> kernel) {
    if (!kernel) return {};
    const vmm::NoticeDevice* notice = machine.board().notice();
    kernel->notice = notice != nullptr;
    if (notice != nullptr) kernel->release_after_ns = notice->status().state.release_after_ns;
    kernel->vmclock = machine.board().vmclock() != nullptr;
    return [&host, config = machine.config(), model = machine.cpu_model(),
            kernel = std::move(*kernel)] { return boot_kernel(host, config, model, kernel); };
}

}  // namespace continuo::cli
