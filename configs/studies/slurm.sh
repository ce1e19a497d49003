#!/usr/bin/env bash
# A study on one node of a SLURM cluster: sbatch configs/studies/slurm.sh configs/studies/sartorius.yaml
# Five minutes before the time limit, or when the job is preempted, running trainings are saved and the job is requeued; it
# then continues. Several such jobs at a time share the stages.
#SBATCH --job-name=detseg-study
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -u

detseg run_study --config "$1" &
study=$!
trap 'kill -TERM "$study"' TERM INT
wait "$study"
status=$?
if [ "$status" -gt 128 ]; then # interrupted by the trap: the study is still saving
    wait "$study"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
