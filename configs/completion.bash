# Completion for `make` variables and `python -m STAGE`: source configs/completion.bash
_mini_llm_python() {
  local stages=" tokenizer pretrain finetune generate mini_llm "
  if [[ ${COMP_WORDS[1]} == -m && $COMP_CWORD -eq 2 ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$stages" -- "${COMP_WORDS[2]}")
  elif [[ ${COMP_WORDS[1]} == -m && $stages == *" ${COMP_WORDS[2]} "* ]]; then
    # Typer answers for the stage as if it were a program of its own.
    local stage=${COMP_WORDS[2]} words=("${COMP_WORDS[@]:2}")
    local IFS=$'\n'
    COMPREPLY=($(env COMP_WORDS="${words[*]}" COMP_CWORD=$((COMP_CWORD - 2)) \
      MINI_LLM_COMPLETE=complete_bash "${COMP_WORDS[0]}" -m "$stage" 2>/dev/null))
  fi
  [[ ${#COMPREPLY[@]} -gt 0 ]] || mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
}
_mini_llm_make() {
  local word=${COMP_WORDS[COMP_CWORD]}
  mapfile -t COMPREPLY < <(compgen -W "help pipeline tokenizer pretrain finetune generate report test lint clean \
    MODEL=gpt MODEL=mlm MODEL=transformer MODEL=gpt2 MODEL=bert MODEL=llama MODEL=t5 DATA= BUDGET= CONFIG= RUN= PROMPT= LAUNCH= ARGS=" -- "$word")
}
complete -o nospace -F _mini_llm_python python python3
complete -o nospace -F _mini_llm_make make
