// The files of the report as they are.
        .macro  asset name, path:vararg
        .balign 16
        .globl  \name
        .globl  \name\()_end
\name:
        .incbin \path
\name\()_end:
        .endm

        .section .rodata.report, "a"
        asset   continuo_report_html, CONTINUO_REPORT_HTML
        asset   continuo_report_css, CONTINUO_REPORT_CSS
        asset   continuo_report_js, CONTINUO_REPORT_JS
        asset   continuo_report_chart_js, CONTINUO_CHART_JS
        .section .note.GNU-stack, "", %progbits
