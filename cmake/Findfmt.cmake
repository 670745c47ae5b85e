# fmt from its headers alone: the program `continuo` is linked statically, so that it runs in the initramfs of an
# emulated host, and Debian's libfmt-dev has no archive for that.
find_path(fmt_INCLUDE_DIR fmt/format-inl.h)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(fmt REQUIRED_VARS fmt_INCLUDE_DIR)
if(fmt_FOUND AND NOT TARGET fmt::fmt)
    add_library(fmt::fmt INTERFACE IMPORTED)
    target_include_directories(fmt::fmt INTERFACE ${fmt_INCLUDE_DIR})
    target_compile_definitions(fmt::fmt INTERFACE FMT_HEADER_ONLY=1)
endif()
mark_as_advanced(fmt_INCLUDE_DIR)
