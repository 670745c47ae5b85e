# cmake -DCOMPILER=g++ -DSOURCE=x.cc -DINCLUDES=dir -P check.cmake: see CMakeLists.txt.
# The C locale: quotation marks of one byte each, so that "." in an expectation stands for one.
set(compile ${CMAKE_COMMAND} -E env LC_ALL=C ${COMPILER} -std=c++20 -fsyntax-only -Wall -Wextra -Werror -I${INCLUDES} ${SOURCE})

execute_process(COMMAND ${compile} RESULT_VARIABLE result ERROR_VARIABLE errors)
if(NOT result EQUAL 0)
    message(FATAL_ERROR "does not compile even without the offence:\n${errors}")
endif()

file(STRINGS ${SOURCE} expectation REGEX "^// expect: ")
string(REGEX REPLACE "^// expect: " "" expectation "${expectation}")
if(expectation STREQUAL "")
    message(FATAL_ERROR "states no reason: a line \"// expect: <regex>\" is missing")
endif()

execute_process(COMMAND ${compile} -DCONTINUO_OFFENCE RESULT_VARIABLE result ERROR_VARIABLE errors)
if(result EQUAL 0)
    message(FATAL_ERROR "compiles, and must not")
endif()
if(NOT errors MATCHES "${expectation}")
    message(FATAL_ERROR "fails for another reason than /${expectation}/:\n${errors}")
endif()
